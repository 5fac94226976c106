"""Count what held, in processes that stay warm, and keep the result of a part."""

from __future__ import annotations

import os
import resource
import shutil
import sys
import tempfile
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from concurrent.futures import TimeoutError as TooSlow
from dataclasses import dataclass, field
from multiprocessing import get_context
from pathlib import Path
from typing import Any, Literal, Self

from pebble import ProcessExpired, ProcessPool

MOST_MEGABYTES = 3072  # that any process may take
_ROOM = 8 * 2**30  # bytes of addresses beyond its start; libraries take some, and use few
_GROUP_SECONDS, _CASE_SECONDS = 240.0, 90.0


@dataclass(frozen=True)
class Outcome:
    """What became of one case.

    `isolated` says that a process that was there to be lost was lost, and that all else held.
    """

    case: int
    result: Literal["held", "isolated", "failed"]
    what: str
    detail: str = ""


@dataclass(frozen=True)
class Plan:
    """Which cases of a part to try, in how many processes, and in which empty folder.

    `prepared` is the folder of the images and the model of `runs.prepare`, which parts share.
    """

    count: int
    seed: int
    jobs: int
    folder: Path
    prepared: Path
    only: int | None = None  # number of a case that is repeated alone

    @property
    def cases(self) -> Sequence[int]:
        """Numbers of the cases."""
        return range(self.count) if self.only is None else [self.only]


@dataclass
class Tally:
    """Counts outcomes of a part and keeps those that failed."""

    part: str
    held: int = 0
    isolated: int = 0
    failures: list[Outcome] = field(default_factory=list)
    facts: dict[str, Any] = field(default_factory=dict)
    seconds: float = 0.0

    @property
    def tried(self) -> int:
        """Number of all cases."""
        return self.held + self.isolated + len(self.failures)

    def add(self, outcome: Outcome) -> None:
        """Count one case."""
        if outcome.result == "failed":
            self.failures.append(outcome)
        elif outcome.result == "held":
            self.held += 1
        else:
            self.isolated += 1
            reasons = self.facts.setdefault("isolated", {})
            reasons[outcome.detail] = reasons.get(outcome.detail, 0) + 1

    def line(self) -> str:
        """Return the line that a part prints."""
        counts = f"held {self.held} isolated {self.isolated} failed {len(self.failures)}"
        return f"{self.part} tried {self.tried} {counts} ({self.seconds:.0f} s)"

    def kept(self) -> dict[str, Any]:
        """Return figures and the first failures as JSON values."""
        return {
            "tried": self.tried,
            "held": self.held,
            "isolated": self.isolated,
            "failed": len(self.failures),
            "wall_seconds": round(self.seconds, 1),
            "facts": self.facts,
            "failures": [f"{f.case}: {f.what}: {f.detail}"[:300] for f in self.failures[:50]],
        }


Part = Callable[[Plan, Tally], None]


def run(
    name: str, part: Part, prepared: Path, count: int, *, seed: int = 0, jobs: int = 1,
    only: int | None = None,
) -> Tally:  # fmt: skip
    """Try a part in a folder of its own; a process that took too much memory is a failure."""
    tally, begun = Tally(name), time.monotonic()
    folder = Path(tempfile.mkdtemp(prefix="anoscan-faults-"))
    try:
        with Watch() as watch:
            part(Plan(count, seed, jobs, folder, prepared, only), tally)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    tally.seconds = time.monotonic() - begun
    tally.facts["peak_mb"] = round(watch.peak)
    if watch.peak > MOST_MEGABYTES:
        tally.add(Outcome(-1, "failed", "memory", f"a process took {watch.peak:.0f} MB"))
    return tally


# --- warm processes -----------------------------------------------------------------------------

# Tries cases by number, given a seed and more; None when one of them disturbed the others.
Attempt = Callable[..., list[Outcome] | None]


def attempt_all(
    attempt: Attempt, plan: Plan, tally: Tally, *, together: int, given: tuple[Path, ...] = ()
) -> None:
    """Give groups of cases to warm processes; the cases of a group that fails are tried alone.

    A process that ends or hangs is replaced. `attempt` gets the seed, the numbers, and `given`.
    """
    own = (str(plan.folder),)
    pool = ProcessPool(
        plan.jobs, initializer=_begin, initargs=own, context=get_context("spawn")
    )  # fmt: skip
    numbers = plan.cases
    groups = deque(numbers[at : at + together] for at in range(0, len(numbers), together))
    running: deque[tuple[Sequence[int], Any]] = deque()  # with futures of pebble
    shown = time.monotonic()
    try:
        while groups or running:
            while groups and len(running) < 2 * plan.jobs:
                group = groups.popleft()
                seconds = _CASE_SECONDS if len(group) == 1 else _GROUP_SECONDS
                future = pool.schedule(attempt, (plan.seed, group, *given), timeout=seconds)
                running.append((group, future))
            group, future = running.popleft()
            found = _found(group, future)
            if found is None:
                groups.extendleft([number] for number in reversed(group))
                continue
            for outcome in found:
                tally.add(outcome)
            if time.monotonic() - shown > 30:
                shown = time.monotonic()
                sys.stderr.write(f"{tally.part}: {tally.tried} of {len(numbers)}\n")
    finally:
        pool.stop()  # type: ignore[no-untyped-call]
        pool.join()


def _found(group: Sequence[int], future: Future[list[Outcome] | None]) -> list[Outcome] | None:
    try:
        found = future.result()
    except ProcessExpired as error:
        reason = f"ends the process (exit code {error.exitcode})"
    except TooSlow:
        reason = f"hangs for {_CASE_SECONDS:g} seconds"
    except Exception as error:
        reason = f"{type(error).__name__}: {error}"
    else:
        if found is not None or len(group) > 1:
            return found
        reason = "disturbs the process"
    return [Outcome(group[0], "failed", "alone", reason)] if len(group) == 1 else None


def _begin(folder: str) -> None:
    """Limit the memory of this process and of those that it starts; keep its files in a folder."""
    tempfile.tempdir = folder
    status = Path("/proc/self/statm").read_text()
    most = int(status.split()[0]) * resource.getpagesize() + _ROOM
    resource.setrlimit(resource.RLIMIT_AS, (most, most))


# --- memory of all processes --------------------------------------------------------------------


def descendants(pid: int) -> Iterator[int]:
    """Yield a process, and all that it started, directly or not."""
    yield pid
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        try:
            children = task.read_text().split()
        except OSError:
            continue
        for child in children:
            yield from descendants(int(child))


def resident(pid: int) -> float:
    """Return the memory of a process in MB; 0 when it has ended."""
    try:
        pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    except (OSError, IndexError):
        return 0.0
    return pages * resource.getpagesize() / 2**20


class Watch:
    """Looks twice a second how much memory the largest process below this one has.

    `peak` is in MB.
    """

    def __init__(self) -> None:
        self.peak = 0.0
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)

    def _look(self) -> None:
        while not self._ended.wait(0.5):
            below = [pid for pid in descendants(os.getpid()) if pid != os.getpid()]
            self.peak = max([self.peak, *map(resident, below)])

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *failure: object) -> None:
        self._ended.set()
        self._thread.join()
