"""The parts `kill` and `disk`: a run that is killed, or whose disk is full, at any moment.

After it, what was there before is whole, and what is new is whole or absent. The same command then
gives what it gives without a fault, byte for byte.
"""

from __future__ import annotations

import re
import shutil
import sys
from collections.abc import Callable, Collection, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np

from benchmarks.faults import runs
from benchmarks.faults.campaign import Outcome, Plan, Tally
from benchmarks.faults.runs import Ended, Material, Run
from benchmarks.faults.sabotage import Sabotage

Try = Callable[["Job", np.random.Generator, int, Path], tuple[str, str]]


@dataclass(frozen=True)
class Job:
    """A command and the files that it writes.

    Parameters
    ----------
    name : str
    material : Material
    arguments : callable
        Gives the arguments of a run whose home is a copy of the store, and whose other files are to
        be below a folder.
    before, after : dict
        Contents of files by their path in the folder: before the run, and after one without fault.
    operations : int
        Number of file operations of a run without fault.
    often : bool
        Whether a training writes a checkpoint after every step.
    """

    name: str
    material: Material
    arguments: Callable[[Path], list[str]]
    before: dict[str, bytes]
    after: dict[str, bytes]
    operations: int = 0
    often: bool = False

    def run(self, folder: Path, sabotage: Sabotage, *more: str) -> Run:
        """Start the command in a folder."""
        given = [*self.arguments(folder), *more]
        return Run(given, folder / "said", folder / "home", sabotage, self.often)

    def lay_out(self, folder: Path) -> None:
        """Write the files that are there before the run."""
        for name, data in self.before.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(data)

    def problem(self, folder: Path, *, ended: bool) -> str:
        """Return what is wrong with the files in a folder.

        Each must be as before or as after a run; with `ended`, all must be as after a run.
        """
        found = _files(folder)
        names = sorted(found.keys() | self.after.keys() | self.before.keys())
        for name in names:
            was, becomes, now = self.before.get(name), self.after.get(name), found.get(name)
            if name.endswith(".tmp") and now is not None:
                if ended:
                    return f"leaves {name}"
            elif now != becomes and (ended or now != was):
                return f"{name} is {'absent' if now is None else 'neither old nor new'}"
        return ""

    @cached_property
    def largest(self) -> int:
        """Size of the largest file that it writes."""
        return max(map(len, self.after.values()))


_DATE = re.compile(rb"\d{4}-\d\d-\d\d \d\d:\d\d UTC")
# Records of a training have no part in the model, and say what was interrupted.
_ASIDE = ("said/", "home/locks/", "home/checkpoints/", ".training/", ".history.jsonl", ".kept/")


def _files(folder: Path) -> dict[str, bytes]:
    """Contents of the files below a folder; see `without_date`."""
    found = {}
    for file in sorted(path for path in folder.rglob("*") if path.is_file()):
        name = file.relative_to(folder).as_posix()
        if not any(part in name for part in _ASIDE) or name.endswith(".tmp"):
            found[name] = without_date(file, folder)
    return found


def without_date(file: Path, folder: Path) -> bytes:
    """Return the content of a file; a page's without the folder that it is in, and the date."""
    data = file.read_bytes()
    if file.suffix != ".html":
        return data
    return _DATE.sub(b"", data.replace(str(folder).encode(), b""))


def _jobs(material: Material, folder: Path, names: Collection[str]) -> dict[str, Job]:
    """Return the commands of these names, after a run of each without fault."""
    store = f"home/models/{runs.NAME}.safetensors"
    model, old = str(material.file), {store: material.model}

    def score(place: Path) -> list[str]:
        outputs = ["--residuals", str(place / "r"), "--maps", str(place / "m")]
        page = ["--report", str(place / "page.html")]
        return ["score", str(material.queries), "--model", model, *outputs, *page, "--json", "-q"]

    def sample(place: Path) -> list[str]:
        return ["sample", model, "--output", str(place / "s"), "-q"]

    def calibrate(place: Path) -> list[str]:
        return ["calibrate", runs.NAME, "--false-alarm-rate", "0.2", "-q"]

    def export(place: Path) -> list[str]:
        return ["models", "export", runs.NAME, str(place / "copy.safetensors")]

    new = ["--force", "--seed", "1"]
    made = [
        Job("train", material, lambda place: material.train(), {}, {}),
        Job("train with checkpoints", material, lambda place: material.train(), {}, {}, often=True),
        Job("train again", material, lambda place: material.train(*new), old, {}),
        Job("score", material, score, {}, {}),
        Job("sample", material, sample, {}, {}),
        Job("calibrate", material, calibrate, old, {}),
        Job("export", material, export, old, {}),
    ]
    return {job.name: _measured(job, folder / job.name) for job in made if job.name in names}


def _measured(job: Job, folder: Path) -> Job:
    job.lay_out(folder)
    log = folder.with_suffix(".log")
    ended = job.run(folder, Sabotage(below=str(folder), log=str(log))).ended()
    if ended.code:
        raise RuntimeError(f"{job.name} fails without a fault: {ended.err}")
    operations = len(log.read_text().splitlines())
    return replace(job, after=_files(folder), operations=operations)


# --- killed -------------------------------------------------------------------------------------

_KILLED = ("train", "train with checkpoints", "score", "train with checkpoints", "score")


def kill(plan: Plan, tally: Tally) -> None:
    """Kill trainings and scorings at file operations, at random moments and in mid-write."""
    _each(plan, tally, _KILLED, _kill)


def _kill(job: Job, rng: np.random.Generator, turn: int, folder: Path) -> tuple[str, str]:
    way = ("operation", "moment", "operation", "size")[turn % 4]
    if way == "moment":
        seconds = float(rng.uniform(0, 4 if "train" in job.name else 2))
        ended = job.run(folder, Sabotage()).kill_after(seconds)
        what = f"killed after {seconds:.3f} s"
    else:
        sabotage, what = _at(job, rng, turn // 2, folder, way)
        sabotage = replace(sabotage, kill_at=sabotage.full_at, full_at=None, killed_by_size=True)
        ended = job.run(folder, sabotage).ended()
    if ended.code is None:
        return what, ended.problem
    if problem := job.problem(folder, ended=False):
        return what, f"after the kill, {problem}"
    checkpoint = folder / "home" / "checkpoints" / f"{runs.NAME}.safetensors"
    more = ["--resume"] * checkpoint.exists()
    if "train" in job.name and (folder / "home" / "models").exists() and _files(folder):
        more += ["--force"]  # the model was in its place already
    again = job.run(folder, Sabotage(), *more).ended()
    if again.code:
        return what, f"then {' '.join(more)} fails: {again.err[-200:]}"
    problem = job.problem(folder, ended=True)
    return what, f"after the next run, {problem}" if problem else ""


def _at(
    job: Job, rng: np.random.Generator, turn: int, folder: Path, way: str
) -> tuple[Sabotage, str]:
    """Return a fault at an operation (one after the other, in great strides), or at a size."""
    if way == "size":
        size = int(np.exp(rng.uniform(np.log(4096), np.log(job.largest))))
        return Sabotage(most_bytes=size), f"no file beyond {size} bytes"
    stride = next(step for step in (37, 41, 43) if job.operations % step)
    number = turn * stride % job.operations
    return Sabotage(below=str(folder), full_at=number), f"at operation {number}"


# --- full ---------------------------------------------------------------------------------------

_FULL = ("train", "train again", "score", "sample", "calibrate", "export")


def disk(plan: Plan, tally: Tally) -> None:
    """Let the disk be full from any file operation on, or at any size of a file."""
    _each(plan, tally, _FULL, _fill)


def _fill(job: Job, rng: np.random.Generator, turn: int, folder: Path) -> tuple[str, str]:
    sabotage, what = _at(job, rng, turn, folder, ("operation", "size")[turn % 2])
    ended = job.run(folder, sabotage).ended()
    return f"full {what}", _after_full(job, folder, ended)


def _after_full(job: Job, folder: Path, ended: Ended) -> str:
    if ended.problem:
        return ended.problem
    if problem := job.problem(folder, ended=ended.code == 0):
        return problem
    if ended.code == 0:
        return ""
    if not ended.is_one_line():
        return f"exit code {ended.code} without one line: {ended.err!r}"
    if str(folder) not in ended.err:
        return f"names no file: {ended.err!r}"
    left = [path.name for path in folder.rglob("*.tmp")]
    return f"leaves {left[0]}" if left else ""


# --- both ---------------------------------------------------------------------------------------


def _each(plan: Plan, tally: Tally, names: tuple[str, ...], attempt: Try) -> None:
    chosen = {names[number % len(names)] for number in plan.cases}
    jobs = _jobs(runs.prepare(plan.prepared), plan.folder / "without-fault", chosen)

    def one(number: int) -> Outcome:
        rounds, place = divmod(number, len(names))
        name = names[place]
        job, turn = jobs[name], rounds * names.count(name) + names[:place].count(name)
        rng, folder = np.random.default_rng([plan.seed, number]), plan.folder / f"case-{number}"
        job.lay_out(folder)
        what, problem = attempt(job, rng, turn, folder)
        shutil.rmtree(folder, ignore_errors=True)
        return Outcome(number, "failed" if problem else "held", f"{job.name} {what}", problem)

    for outcome in in_threads(one, plan):
        tally.add(outcome)


def in_threads(one: Callable[[int], Outcome], plan: Plan) -> Iterator[Outcome]:
    """Yield the outcomes of cases, which start processes of their own."""
    with ThreadPoolExecutor(plan.jobs) as pool:
        for done, outcome in enumerate(pool.map(one, plan.cases)):
            if done % 20 == 19:
                sys.stderr.write(f"{done + 1} of {len(plan.cases)}\n")
            yield outcome
