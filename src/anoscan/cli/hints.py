"""Name the right option where a user gives one that other programs have."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple


class _Meant(NamedTuple):
    """Options that may be meant, a reason, and what to say where a command has none of them."""

    options: Sequence[str]
    why: str
    elsewhere: str


_LENGTH = _Meant(
    ("--images-shown",),
    "the length is counted in images: epochs times the number of images",
    "anoscan train --images-shown N sets the length of a training, in images.",
)
_LEVEL = _Meant(
    ("--false-alarm-rate",),
    "the threshold follows from the share of normal images that may be called anomalous",
    "anoscan calibrate MODEL --false-alarm-rate SHARE sets the threshold of a model.",
)
_PLACE = _Meant(
    ("--output", "--residuals", "--maps", "--report", "--plots", "--name"),
    "",
    "Results go to stdout: --json > FILE keeps them.",
)
_MEANT: Mapping[str, _Meant] = {
    "--epochs": _LENGTH,
    "--iterations": _LENGTH,
    "--steps": _LENGTH,
    "--threshold": _LEVEL,
    "--output": _PLACE,
    "--output-dir": _PLACE,
    "--output-folder": _PLACE,
    "--out": _PLACE,
    "--outdir": _PLACE,
    "-o": _PLACE,
}
_STORE = " Models are kept in the store: anoscan models export copies one out."


def for_option(given: str, command: Any) -> str | None:
    """Return a hint at the options of a command that may be meant by one that it lacks, or None."""
    meant = _MEANT.get(given)
    if meant is None:
        return None
    there = {name: found.metavar for found in command.params for name in found.opts}
    options = [f"{name} {there[name] or ''}".strip() for name in meant.options if name in there]
    if not options:
        return meant.elsewhere
    *others, last = options
    hint = f"{', '.join(others)} or {last}" if others else last
    why = f": {meant.why}" if meant.why else ""
    store = _STORE if last.startswith("--name") else ""
    return f"You may mean {hint}{why}.{store}"
