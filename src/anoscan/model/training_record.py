"""The record of a training: a folder beside the model, with pictures and losses as JSON lines.

Nothing here imports torch, because the store moves records and must start fast. Only files that a
training wrote are ever touched, whatever else is in the folder, which need not exist.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from anoscan.core.files import append_line, remove_leftovers, replacing

LOSSES = "losses.jsonl"
_SUFFIX, _MODEL_SUFFIX = ".training", ".safetensors"
_PICTURE = re.compile(r"(samples|reconstructions)-[a-z0-9_-]+-\d{9,}\.png")


class Record:
    """The record of a model file; that of ``bolts.safetensors`` is in ``bolts.training``."""

    def __init__(self, model: Path) -> None:
        name = model.name.removesuffix(_MODEL_SUFFIX)
        self.folder = model.with_name(name + _SUFFIX)

    def picture(self, kind: str, stage: str, images: int) -> Path:
        """Return the path of the 'samples' or 'reconstructions' after so many images of a stage."""
        return self.folder / f"{kind}-{stage}-{images:09}.png"

    def append(self, line: dict[str, Any]) -> None:
        """Add a line of JSON values to the losses; on a full disk no half of it stays.

        Raises
        ------
        OSError
            When the folder cannot be written.
        """
        append_line(self.folder / LOSSES, line)

    def lines(self) -> list[dict[str, Any]]:
        """Return all lines of the losses, up to the first that is cut short or malformed."""
        try:
            text = (self.folder / LOSSES).read_text(encoding="utf-8")
        except (FileNotFoundError, NotADirectoryError):
            return []
        found = []
        for line in text.splitlines():
            try:
                value = json.loads(line)
            except ValueError:
                break
            if not isinstance(value, dict) or not {"stage", "images", "pictures"} <= set(value):
                break
            found.append(value)
        return found

    def rewind(self, stage: str, images: int) -> None:
        """Remove lines and pictures after `images` of a stage, which a resumed training repeats.

        Raises
        ------
        OSError, InputError
            When the folder cannot be written.
        """
        remove_leftovers(self.folder)
        if not self.folder.exists():
            return
        kept = []
        for line in self.lines():
            if line["stage"] == stage and line["images"] > images:
                break
            kept.append(line)
        # The losses are replaced at once, so a process killed meanwhile leaves a whole record.
        with replacing(self.folder / LOSSES) as stream:
            stream.write("".join(map(_text, kept)).encode("utf-8"))
        shown = {name for line in kept for name in line["pictures"]}
        for file in self._own():
            if file.name not in shown and file.name != LOSSES:
                file.unlink()

    def clear(self) -> None:
        """Remove the record's files, and the folder if empty then, as far as the system allows."""
        remove_leftovers(self.folder)
        with suppress(OSError):
            for file in self._own():
                file.unlink()
            self.folder.rmdir()

    def copy(self, other: Record) -> None:
        """Make `other` a copy of this record, as far as the system allows; it must not exist yet.

        Files are linked where that can be done, because no file of a finished record is changed.
        """
        with suppress(OSError):
            for file in self._own():
                other.folder.mkdir(parents=True, exist_ok=True)
                try:
                    os.link(file, other.folder / file.name)
                except OSError:
                    shutil.copyfile(file, other.folder / file.name)

    def move(self, other: Record) -> Record:
        """Move this record over `other`; return that, or this one where the system refuses."""
        if not self.folder.is_dir():
            other.clear()
            return other
        try:
            if other.folder.exists() and other.folder.samefile(self.folder):
                self.folder.rename(other.folder)
                return other
            other.clear()
            if not other.folder.exists() and {*self._own()} == {*self.folder.iterdir()}:
                # One step: a process killed meanwhile leaves a whole record.
                with suppress(OSError):  # another file system, where each file is copied below
                    self.folder.rename(other.folder)
                    return other
            other.folder.mkdir(parents=True, exist_ok=True)
            for file in self._own():
                shutil.move(file, other.folder / file.name)
        except OSError:
            return self
        self.clear()
        return other

    def _own(self) -> Iterator[Path]:
        """Yield the files that a training wrote."""
        if self.folder.is_dir():
            for file in sorted(self.folder.iterdir()):
                if file.name == LOSSES or _PICTURE.fullmatch(file.name):
                    yield file


def _text(line: dict[str, Any]) -> str:
    return json.dumps(line, allow_nan=False) + "\n"
