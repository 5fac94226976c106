"""Keep the results of the benchmarks as JSON lines.

There is a file for each set and method, and in it a line for each cell.
"""

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
    """Names one measurement.

    Parameters
    ----------
    data : str
        Name of a set, or ``JOB/SET`` for the results of a benchmark other than `benchmarks.run`.
    cls : str
        Class of the set that is normal.
    seed : int
        Seed of the split and of the training.
    method : str
        Name of a method, or of a row of a benchmark.
    settings : tuple of (str, any JSON value)
        Settings of the training that differ from the method's.
    """

    data: str
    cls: str
    seed: int
    method: str
    settings: tuple[tuple[str, Any], ...] = ()

    @property
    def path(self) -> Path:
        """Name the file of its set and method; all methods of ``JOB/SET`` share one file."""
        name = self.data if "/" in self.data else f"{self.data}/{self.method}"
        return RESULTS / f"{name}.jsonl"


def load(pattern: str) -> list[dict[str, Any]]:
    """Read kept results, sorted by file, method, class and seed.

    Parameters
    ----------
    pattern : str
        Glob pattern of files in `RESULTS`, without their suffix: ``mnist/pca-64``, ``mnist/*`` for
        a whole set, ``**/*`` for all.
    """
    return [
        row for path in sorted(RESULTS.glob(f"{pattern}.jsonl")) for row in _read(path).values()
    ]


def find(cell: Cell) -> dict[str, Any] | None:
    """Look up the kept result of a cell; returns None when there is none."""
    return _read(cell.path).get(_key(asdict(cell)))


def keep(cell: Cell, found: dict[str, Any], command: str) -> dict[str, Any]:
    """Keep the result of a cell in place of an older one, with the commit that made it.

    The file is replaced as a whole under a lock, and its lines are sorted. So sweeps can run at the
    same time, and a sweep that is killed leaves no incomplete line.

    Parameters
    ----------
    cell : Cell
        What was measured.
    found : dict
        Figures, and versions of the software that made them; JSON types only.
    command : str
        Command line that repeats the measurement.

    Returns
    -------
    dict
        The kept result, as `find` returns it.
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
    """Read the rows of a file: the last row of a cell counts, and an incomplete line is ignored."""
    text = path.read_text(encoding="utf-8") if path.exists() else ""
    rows = [json.loads(line) for line in text[: text.rfind("\n") + 1].splitlines()]
    return {_key(row): row for row in rows}


def _key(row: dict[str, Any]) -> Key:
    settings = json.dumps(dict(row["settings"]), sort_keys=True)
    return row["method"], row["cls"], row["seed"], settings


def sizes(split: Split) -> dict[str, Any]:
    """Count the training and test images of a split, to be kept with the result."""
    odd = int(split.anomalous.sum())
    counts = {"test_normal": len(split.test) - odd, "test_anomalous": odd}
    return {"images": {"train": len(split.train)} | counts}


def listed(text: str) -> list[str]:
    """Split the text of an option at its commas."""
    return text.split(",")


def parser(description: str | None) -> argparse.ArgumentParser:
    """Make the command-line parser of a sweep, with the options that all sweeps have."""
    made = argparse.ArgumentParser(description=description)
    made.add_argument("--classes", type=listed, help="separated by commas; all by default")
    made.add_argument("--jobs", type=int, default=1, help="processes, one thread each")
    made.add_argument("--again", action="store_true", help="compute cells that are there")
    return made


def command() -> str:
    """Write the command line of this process, to be kept with its results."""
    return f"python -m benchmarks.{Path(sys.argv[0]).stem} {shlex.join(sys.argv[1:])}".strip()


def sweep(
    wanted: Sequence[Cell],
    compute: Callable[[Cell, str], dict[str, Any]],
    options: argparse.Namespace,
) -> None:
    """Compute missing cells, with a line each on stderr; print JSON of all cells on stdout.

    Parameters
    ----------
    wanted : sequence of Cell
        Cells to have results of.
    compute : callable
        Function that measures and keeps a cell, given the cell and the command. It must be
        importable by name.
    options : Namespace
        Options that were parsed by `parser`.
    """
    missing = [cell for cell in wanted if options.again or not find(cell)]
    # Processes are spawned and not forked, because torch's threads do not survive a fork.
    context = get_context("spawn")
    with ProcessPoolExecutor(options.jobs, context, initializer=_own_home) as pool:
        running = {pool.submit(compute, cell, command()): cell for cell in missing}
        for done in as_completed(running):
            cell, result = running[done], done.result()
            line = f"{cell.data} {cell.cls} seed {cell.seed} {cell.method}: {result['auroc']:.4f}"
            sys.stderr.write(f"{line} ({result['cpu_seconds']:.0f} CPU s)\n")
    json.dump([find(cell) for cell in wanted], sys.stdout, indent=1)


def _own_home() -> None:
    """Give this process a model store of its own, because all cells train under one name."""
    home = Path(os.environ.get("ANOSCAN_HOME") or tempfile.gettempdir())
    os.environ["ANOSCAN_HOME"] = str(home / f"benchmark-{os.getpid()}")


def commit() -> str:
    """Name the current commit, with ``-dirty`` when the code was changed since.

    Changed results, tables and sheets do not count, because a sweep changes them itself.
    """

    def git(*arguments: str) -> str:
        called = ["git", "-C", str(Path(__file__).parent.parent), *arguments]
        return subprocess.run(called, capture_output=True, text=True, check=False).stdout.strip()

    name = git("rev-parse", "--short=9", "HEAD") or "unknown"
    made = [f":(exclude)benchmarks/{folder}" for folder in ("results", "tables", "sheets")]
    return f"{name}-dirty" if git("status", "--porcelain", "--", ".", *made) else name
