"""The record of a training: a folder beside its model, with losses as JSON lines and pictures.

Nothing here imports torch: the store moves and removes records with their models. Only files that
a training wrote are ever touched, whatever else somebody put into the folder.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

LOSSES = "losses.jsonl"
_SUFFIX, _MODEL_SUFFIX = ".training", ".safetensors"
_PICTURE = re.compile(r"(samples|reconstructions)-[a-z0-9_-]+-\d{9,}\.png")


class Record:
    """The record that belongs to a model file or to a checkpoint; the folder need not exist.

    Parameters
    ----------
    model : Path
        The file. ``bolts.safetensors`` has its record in ``bolts.training``.
    """

    def __init__(self, model: Path) -> None:
        name = model.name.removesuffix(_MODEL_SUFFIX)
        self.folder = model.with_name(name + _SUFFIX)

    def picture(self, kind: str, stage: str, images: int) -> Path:
        """File of a picture: `kind` is 'samples' or 'reconstructions'."""
        return self.folder / f"{kind}-{stage}-{images:09}.png"

    def append(self, line: dict[str, Any]) -> None:
        """Add a line of JSON values.

        Raises
        ------
        OSError
            When the folder cannot be written.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        with (self.folder / LOSSES).open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(line, allow_nan=False) + "\n")

    def lines(self) -> list[dict[str, Any]]:
        """All lines; one that was cut short, and what follows it, is left out."""
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
        """Forget what came after `images` of a stage, pictures too: it will happen again.

        Raises
        ------
        OSError
            When the folder cannot be written.
        """
        kept = []
        for line in self.lines():
            if line["stage"] == stage and line["images"] > images:
                break
            kept.append(line)
        shown = {name for line in kept for name in line["pictures"]}
        for file in self._own():
            if file.name not in shown:
                file.unlink()
        for line in kept:
            self.append(line)

    def clear(self) -> None:
        """Remove the record, as far as the system allows."""
        with suppress(OSError):
            for file in self._own():
                file.unlink()
            self.folder.rmdir()

    def move(self, other: Record) -> Record:
        """Make this the record `other`, in place of what that held; returns where it is then.

        Where the system refuses, it stays.
        """
        if not self.folder.is_dir():
            other.clear()
            return other
        try:
            if other.folder.exists() and other.folder.samefile(self.folder):
                self.folder.rename(other.folder)
                return other
            other.clear()
            other.folder.mkdir(parents=True, exist_ok=True)
            for file in self._own():
                shutil.move(file, other.folder / file.name)
        except OSError:
            return self
        self.clear()
        return other

    def _own(self) -> Iterator[Path]:
        if self.folder.is_dir():
            for file in sorted(self.folder.iterdir()):
                if file.name == LOSSES or _PICTURE.fullmatch(file.name):
                    yield file
