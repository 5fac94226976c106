"""Keep the results of the benchmarks: a JSON-lines file for each set and method, a line a cell."""

from __future__ import annotations

import argparse
import json
import os
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from filelock import FileLock

from benchmarks.data import Split

RESULTS = Path(__file__).parent / "results"

Key = tuple[str, str, int, str]


@dataclass(frozen=True)
class Cell:
    """Names one thing to measure."""

    data: str
    cls: str
    seed: int
    method: str
    settings: tuple[tuple[str, Any], ...] = ()

    @property
    def path(self) -> Path:
        """Name the file of its set and method; a job's set, as ``lineage/mnist``, has one alone."""
        name = self.data if "/" in self.data else f"{self.data}/{self.method}"
        return RESULTS / f"{name}.jsonl"


def load(pattern: str) -> list[dict[str, Any]]:
    """Read kept results, sorted by file, method, class and seed.

    Parameters
    ----------
    pattern : str
        Names files below the results: ``mnist/pca-64``, ``mnist/*`` for a whole set, ``**/*``.
    """
    return [
        row for path in sorted(RESULTS.glob(f"{pattern}.jsonl")) for row in _read(path).values()
    ]


def find(cell: Cell) -> dict[str, Any] | None:
    """Look up the kept result of a cell, which may not be there."""
    return _read(cell.path).get(_key(asdict(cell)))


def keep(cell: Cell, found: dict[str, Any], command: str) -> dict[str, Any]:
    """Keep the result of a cell in place of an older one, with the commit that made it.

    Under a lock the file is replaced as a whole, its lines in order. So sweeps can run side by
    side, and one that is killed leaves no half of a line.

    Parameters
    ----------
    cell : Cell
    found : dict
        Holds figures, and versions of what made them; JSON types only.
    command : str
        Tells whoever wants to repeat it.

    Returns
    -------
    dict
        What was kept, as `find` returns it.
    """
    made = {**asdict(cell), **found, "commit": commit(), "command": command}
    result: dict[str, Any] = json.loads(json.dumps(made))
    cell.path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(RESULTS / ".lock"):
        rows = _read(cell.path) | {_key(result): result}
        lines = [json.dumps(rows[key], sort_keys=True) + "\n" for key in sorted(rows)]
        temporary = cell.path.with_suffix(".tmp")
        temporary.write_text("".join(lines), encoding="utf-8")
        temporary.replace(cell.path)
    return result


def _read(path: Path) -> dict[Key, dict[str, Any]]:
    """Read the rows of a file: the last one of a cell counts, a line without its end does not."""
    text = path.read_text(encoding="utf-8") if path.exists() else ""
    rows = [json.loads(line) for line in text[: text.rfind("\n") + 1].splitlines()]
    return {_key(row): row for row in rows}


def _key(row: dict[str, Any]) -> Key:
    settings = json.dumps(dict(row["settings"]), sort_keys=True)
    return row["method"], row["cls"], row["seed"], settings


def sizes(split: Split) -> dict[str, Any]:
    """Count the images that a cell was measured on, to be kept with it."""
    odd = int(split.anomalous.sum())
    counts = {"test_normal": len(split.test) - odd, "test_anomalous": odd}
    return {"images": {"train": len(split.train)} | counts}


def listed(text: str) -> list[str]:
    """Read an option that is a list separated by commas."""
    return text.split(",")


def parser(description: str | None) -> argparse.ArgumentParser:
    """Make the command line of a sweep, with the options that all of them have."""
    made = argparse.ArgumentParser(description=description)
    made.add_argument("--classes", type=listed, help="separated by commas; all by default")
    made.add_argument("--jobs", type=int, default=1, help="processes, one thread each")
    made.add_argument("--again", action="store_true", help="compute cells that are there")
    return made


def command() -> str:
    """Say what was called, to be kept with its results."""
    return f"python -m benchmarks.{Path(sys.argv[0]).stem} {shlex.join(sys.argv[1:])}".strip()


def sweep(
    wanted: Sequence[Cell],
    compute: Callable[[Cell, str], dict[str, Any]],
    options: argparse.Namespace,
) -> None:
    """Compute the cells that are missing, a line each on stderr; print JSON of all on stdout.

    Parameters
    ----------
    wanted : sequence of Cell
    compute : callable
        Measures and keeps a cell, given the command too; it must be importable by name.
    options : Namespace
        Comes from `parser`.
    """
    missing = [cell for cell in wanted if options.again or not find(cell)]
    # Spawned, not forked: torch's threads do not survive a fork.
    context = get_context("spawn")
    with ProcessPoolExecutor(options.jobs, context, initializer=_own_home) as pool:
        running = {pool.submit(compute, cell, command()): cell for cell in missing}
        for done in as_completed(running):
            cell, result = running[done], done.result()
            line = f"{cell.data} {cell.cls} seed {cell.seed} {cell.method}: {result['auroc']:.4f}"
            sys.stderr.write(f"{line} ({result['cpu_seconds']:.0f} CPU s)\n")
    json.dump([find(cell) for cell in wanted], sys.stdout, indent=1)


def _own_home() -> None:
    """Give this process a store of its own: all cells train under one name, one at a time."""
    home = Path(os.environ.get("ANOSCAN_HOME") or tempfile.gettempdir())
    os.environ["ANOSCAN_HOME"] = str(home / f"benchmark-{os.getpid()}")


def commit() -> str:
    """Name the commit that makes the figures, ``-dirty`` where its code was changed.

    Results, tables and sheets do not count: a sweep changes them itself.
    """

    def git(*arguments: str) -> str:
        called = ["git", "-C", str(Path(__file__).parent.parent), *arguments]
        return subprocess.run(called, capture_output=True, text=True, check=False).stdout.strip()

    name = git("rev-parse", "--short=9", "HEAD") or "unknown"
    made = [f":(exclude)benchmarks/{folder}" for folder in ("results", "tables", "sheets")]
    return f"{name}-dirty" if git("status", "--porcelain", "--", ".", *made) else name
