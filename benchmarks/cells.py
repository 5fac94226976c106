"""One kept result of a benchmark: where it lies, and what it says besides its figures."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from benchmarks.data import Split

RESULTS = Path(__file__).parent / "results"


@dataclass(frozen=True)
class Cell:
    """One thing to measure."""

    data: str
    cls: str
    seed: int
    method: str
    settings: tuple[tuple[str, Any], ...] = ()

    @property
    def path(self) -> Path:
        """Where its result is kept; other settings give another file."""
        tag = ""
        if self.settings:
            text = json.dumps(self.settings, sort_keys=True)
            tag = "-" + hashlib.sha256(text.encode()).hexdigest()[:8]
        return RESULTS / self.data / f"{self.method}{tag}" / f"{self.cls}-seed{self.seed}.json"


def keep(cell: Cell, split: Split, found: dict[str, Any], command: str) -> dict[str, Any]:
    """Write a cell's result with the commit and command that made it, whole or not at all.

    Parameters
    ----------
    cell : Cell
    split : Split
        What `cell` was measured on; its sizes are kept.
    found : dict
        Figures, and versions of what made them; JSON types only.
    command : str
        For whoever wants to repeat it.

    Returns
    -------
    dict
        What was written.
    """
    result = {
        **asdict(cell),
        **found,
        "images": {
            "train": len(split.train),
            "test_normal": int((~split.anomalous).sum()),
            "test_anomalous": int(split.anomalous.sum()),
        },
        "commit": commit(),
        "command": command,
    }
    cell.path.parent.mkdir(parents=True, exist_ok=True)
    temporary = cell.path.with_suffix(".tmp")
    temporary.write_text(json.dumps(result, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    temporary.replace(cell.path)
    return result


def sweep(
    wanted: Sequence[Cell],
    compute: Callable[[Cell, str], dict[str, Any]],
    command: str,
    *,
    jobs: int,
    again: bool,
) -> None:
    """Compute the cells that are missing, a line each on stderr; JSON of all on stdout.

    Parameters
    ----------
    wanted : sequence of Cell
    compute : callable
        From a cell and the command to its result, which it keeps; importable by name.
    command : str
    jobs : int
        Processes, one thread each.
    again : bool
        Compute cells that are there too.
    """
    missing = [cell for cell in wanted if again or not cell.path.exists()]
    # Spawned, not forked: torch's threads do not survive a fork.
    pool = ProcessPoolExecutor(jobs, mp_context=get_context("spawn"), initializer=_own_home)
    with pool:
        running = {pool.submit(compute, cell, command): cell for cell in missing}
        for done in as_completed(running):
            cell, result = running[done], done.result()
            line = f"{cell.data} {cell.cls} seed {cell.seed} {cell.method}: {result['auroc']:.4f}"
            sys.stderr.write(f"{line} ({result['cpu_seconds']:.0f} CPU s)\n")
    json.dump([json.loads(cell.path.read_text()) for cell in wanted], sys.stdout, indent=1)


def _own_home() -> None:
    """A store for this process: cells train under one name, which is one training at a time."""
    home = Path(os.environ.get("ANOSCAN_HOME") or tempfile.gettempdir())
    os.environ["ANOSCAN_HOME"] = str(home / f"benchmark-{os.getpid()}")


def commit() -> str:
    """Of the checkout that makes the figures, ``-dirty`` where its code was changed.

    Results do not count: a sweep changes them itself.
    """

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(Path(__file__).parent.parent), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()

    name = git("rev-parse", "--short=9", "HEAD") or "unknown"
    elsewhere = ("--", ".", ":(exclude)benchmarks/results")
    return f"{name}-dirty" if git("status", "--porcelain", *elsewhere) else name
