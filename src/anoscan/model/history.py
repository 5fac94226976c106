"""The history of a model: JSON lines beside it, of what was done when, by which version, from what.

The history of ``bolts.safetensors`` is in ``bolts.history.jsonl``. Dates and folders are kept there
because they must not be in the model file: equal images and seed give equal models.
"""

from __future__ import annotations

import dataclasses
import os
import warnings
from collections.abc import Sequence
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path

import msgspec

import anoscan
from anoscan.core.errors import AnoscanWarning, ModelError
from anoscan.core.files import append_line, encodable, reason_of, replacing
from anoscan.core.results import ModelEvent, Threshold
from anoscan.core.urls import shown, url_of
from anoscan.model.names import SUFFIX

_ENDING = ".history.jsonl"


def file_of(model: Path) -> Path:
    """Return the file of the history of a model file; neither need exist."""
    return model.with_name(model.name.removesuffix(SUFFIX) + _ENDING)


def add(
    model: Path,
    action: str,
    *,
    folders: Sequence[str | Path] = (),
    images: int | None = None,
    threshold: Threshold | None = None,
    sha256: str | None = None,
    note: str | None = None,
) -> None:
    """Add what was just done to the history; warn where it cannot be written.

    `action` is one word. `folders` are what the images came from, `images` the number of them that
    decide, and `note` says in words what else is to be known.
    """
    event = ModelEvent(
        at=in_utc(datetime.now(UTC)),
        action=action,
        by=anoscan.__version__,
        folders=tuple(map(_whole, folders)),
        images=images,
        threshold=None if threshold is None else threshold.score,
        false_alarm_rate=None if threshold is None else threshold.effective_rate,
        sha256=sha256,
        note=note,
    )
    try:
        append_line(file_of(model), dataclasses.asdict(event))
    except OSError as error:
        warnings.warn(
            f"{file_of(model)} cannot be written: {reason_of(error)}. The history of "
            f"{model.stem} lacks this {action}.",
            AnoscanWarning,
            stacklevel=2,
        )


def _whole(folder: str | Path) -> str:
    url = url_of(folder)
    return encodable(os.path.abspath(folder)) if url is None else shown(url)  # noqa: PTH100


def events(model: Path) -> tuple[ModelEvent, ...]:
    """Return what was done to a model, the oldest first; malformed lines are left out."""
    try:
        lines = file_of(model).read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return ()
    found = []
    for line in lines:
        with suppress(msgspec.DecodeError):  # also raised for values of the wrong types
            found.append(msgspec.json.decode(line, type=ModelEvent))
    return tuple(found)


def in_utc(at: datetime) -> str:
    """Return a time in UTC as text, such as 2026-03-01T12:00:00Z."""
    return at.astimezone(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")


def follow(model: Path, other: Path) -> None:
    """Let the history follow a model that got another name, which has no history of its own."""
    with suppress(OSError):
        file_of(model).rename(file_of(other))


def carry(model: Path, other: Path) -> None:
    """Let the history of `model`, if there is any, replace that of a copy of the model.

    Raises
    ------
    ModelError
        When it cannot be read or written.
    """
    try:
        lines = file_of(model).read_bytes()
    except FileNotFoundError:
        return
    except OSError as error:
        raise ModelError(f"cannot read {file_of(model)}: {reason_of(error)}.") from error
    with replacing(file_of(other), ModelError) as stream:
        stream.write(lines)


def clear(model: Path) -> None:
    """Remove the history, as far as the system allows."""
    with suppress(OSError):
        file_of(model).unlink(missing_ok=True)
