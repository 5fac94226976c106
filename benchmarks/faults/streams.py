"""The parts `streams` and `network`: closed and full streams, gone readers, and no network."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from pathlib import Path

from benchmarks.faults import runs
from benchmarks.faults.campaign import Outcome, Plan, Tally
from benchmarks.faults.interrupted import in_threads
from benchmarks.faults.runs import Ended, Material
from benchmarks.faults.sabotage import forbidding

# What the shell does with the streams. No reader is left where a process ends at once.
REDIRECTED = {
    "stdout full": "> /dev/full",
    "stdout closed": ">&-",
    "stdin closed": "<&-",
    "reader of stdout gone": "> >(exec true)",
    "stderr closed": "2>&-",
    "all closed": "<&- >&- 2>&-",
    "stderr full": "2> /dev/full",
    "reader of stdout goes": "> >(exec head -c 1 > /dev/null)",
    "reader of stderr gone": "2> >(exec true)",
    "both full": "> /dev/full 2> /dev/full",
    "stdout and stderr closed": ">&- 2>&-",
}
_MAY_END_EARLY = ("stderr full", "both full", "reader of stderr gone")

Arguments = Callable[[Material, Path], list[str]]


def _score(*options: str) -> Arguments:
    return lambda made, home: ["score", str(made.queries), "--model", str(made.file), *options]


COMMANDS: dict[str, Arguments] = {
    "version": lambda made, home: ["--version"],
    "list": lambda made, home: ["models", "list"],
    "score": _score(),
    "help": lambda made, home: ["score", "--help"],
    "train": lambda made, home: made.train(),
    "list --json": lambda made, home: ["models", "list", "--json"],
    "score --json": _score("--json"),
    "score --jsonl": _score("--jsonl"),
    "score --csv": _score("--csv"),
    "score -": lambda made, home: ["score", "-", "--model", str(made.file)],
    "wrong usage": lambda made, home: ["score"],
    "missing": lambda made, home: ["score", str(home / "missing")],
}


def streams(plan: Plan, tally: Tally) -> None:
    """Run each command with each kind of broken streams."""
    material = runs.prepare(plan.prepared)
    cases = list(itertools.product(REDIRECTED, COMMANDS))

    def one(number: int) -> Outcome:
        how, name = cases[number % len(cases)]
        home = plan.folder / f"home-{number}"
        given = COMMANDS[name](material, home)
        listed = str(material.queries).encode() if name == "score -" else b""
        ended = runs.cold(given, home, shell=REDIRECTED[how], stdin=listed)
        problem = ended.problem or judged(name, how, ended, home, material)
        return Outcome(number, "failed" if problem else "held", f"{name}, {how}", problem)

    for outcome in in_threads(one, plan):
        tally.add(outcome)


def judged(name: str, how: str, ended: Ended, home: Path, material: Material) -> str:
    """Return what is wrong with a run whose streams were broken; empty when it held."""
    fails = name in ("wrong usage", "missing") or (name == "score -" and "<" in REDIRECTED[how])
    if how == "stdout full" and ended.code == 0:
        return "exit code 0 though its output is lost"
    if how == "stdout full" and not ended.err.strip():
        return "says nothing of the full disk"
    if how in ("stdin closed", "stderr closed") and not fails and ended.code:
        return f"exit code {ended.code} for want of what it does not need: {ended.err!r}"
    if fails and ended.code == 0:
        return "exit code 0"
    file = home / "models" / f"{runs.NAME}.safetensors"
    if name == "train" and file.exists() and file.read_bytes() != material.model:
        return "the model is not what it is otherwise"
    # A training prints its result last; only its warnings, on stderr, can end it before.
    if name == "train" and not file.exists() and how not in _MAY_END_EARLY:
        return f"there is no model: {ended.err[-200:]!r}"
    return ""


# --- no network ---------------------------------------------------------------------------------


OFFLINE: dict[str, Arguments] = {
    "train": lambda made, home: made.train(),
    "score": _score("--json"),
    "score with pictures": lambda made, home: _score(
        *("--maps", str(home / "maps"), "--residuals", str(home / "residuals")),
        *("--report", str(home / "page.html")),
    )(made, home),
    "models list": lambda made, home: ["models", "list"],
    "models show": lambda made, home: ["models", "show", str(made.file)],
    "calibrate": lambda made, home: [
        *("calibrate", str(made.file), "--false-alarm-rate", "0.1", "--name", "copy")
    ],
    "drift": lambda made, home: ["drift", str(made.file), str(made.normal)],
    "sample": lambda made, home: ["sample", str(made.file), "--output", str(home / "samples")],
    "doctor": lambda made, home: ["doctor"],
    "version": lambda made, home: ["--version"],
    "help": lambda made, home: ["train", "--help"],
}


def network(plan: Plan, tally: Tally) -> None:
    """Run commands whose Python refuses every socket, and count those that asked for one."""
    material = runs.prepare(plan.prepared)
    names = list(OFFLINE)

    def one(number: int) -> Outcome:
        name = names[number % len(names)]
        home = plan.folder / f"home-{number}"
        problem = offline(OFFLINE[name](material, home), home)
        return Outcome(number, "failed" if problem else "held", name, problem)

    for outcome in in_threads(one, plan):
        tally.add(outcome)


def offline(arguments: Sequence[str], home: Path) -> str:
    """Run a command without a network, and return what is wrong; empty when it held."""
    log = home / "asked"
    ended = runs.cold(arguments, home, path=[forbidding(home / "site", log)])
    if not log.exists():
        return "the network was not forbidden"
    if asked := log.read_text().splitlines():
        return f"asks for {asked[0]}"
    failed = ended.code not in (0, 5)  # 5 says that the images of `drift` are others
    return ended.problem or (f"exit code {ended.code}: {ended.err[-150:]!r}" if failed else "")
