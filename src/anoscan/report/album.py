"""Keep small pictures of many images in a temporary file or a folder, for a report."""

from __future__ import annotations

import base64
import io
import os
import re
import tempfile
from collections.abc import Callable
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import IO, Self

from PIL import Image

from anoscan.core.files import cannot_write, temporary_folder
from anoscan.report.pictures import Views

# All pictures inside one file have about this many bytes, before base64 makes a third more of them.
INLINE_BYTES = 40_000_000
_MOST, _LEAST = 60_000, 1_500  # bytes of all pictures of one image
# Longest sides in pixels and qualities of WebP are tried in this order, the best first.
_RUNGS = (
    (384, 85),
    (320, 80),
    (256, 80),
    (256, 65),
    (192, 70),
    (192, 50),
    (128, 60),
    (128, 40),
    (96, 35),
    (64, 30),
)
_ROOM_LEFT = 0.45  # share of the budget: if an image needs less, the next one is tried larger
_EXACT = 32  # pixels a side: pictures up to this size are stored without loss
NAMES = ("query", "reconstruction", "map")
_FILE = re.compile(r"\d{6,}-(query|reconstruction|map)\.webp")

Draw = Callable[[int], Views]


class Album:
    """Keeps the pictures of images that are added one after the other, not in memory but on disk.

    Parameters
    ----------
    images : int
        About how many images will be added. The more there are, the smaller their pictures get.
    beside : Path
        Folder for the temporary file, which has no name there.
    folder : Path, optional
        When given, every picture is a file of its own, and may be larger. `finish` puts the files
        into this folder. Before that, they are in a temporary folder beside it.

    Raises
    ------
    InputError
        When nothing can be written to the folder.
    """

    def __init__(self, images: int, beside: Path, folder: Path | None = None) -> None:
        self.folder = folder
        self._budget = min(_MOST, max(_LEAST, INLINE_BYTES // max(1, images)))
        self._rung = 0
        self._ends = [0]
        self._stack, self._spooled = ExitStack(), f"the pictures to a temporary file in {beside}"
        self._spool: IO[bytes] | None = None
        if folder is not None:
            self._budget = 4 * _MOST
            self._unfinished = self._stack.enter_context(temporary_folder(folder.parent))
            return
        try:
            beside.mkdir(parents=True, exist_ok=True)
            self._spool = tempfile.TemporaryFile(dir=beside)  # noqa: SIM115 - see close
        except OSError as error:
            raise cannot_write(self._spooled, error) from error

    def __len__(self) -> int:
        return len(self._ends) - 1

    def add(self, draw: Draw) -> int:
        """Keep the pictures of one image, and return its number, which counts from 0.

        `draw` draws all three views, given their longest side in pixels.

        Raises
        ------
        InputError
            When the pictures cannot be written.
        """
        files = self._encoded(draw)
        if self.folder is not None:
            for name, data in zip(NAMES, files, strict=False):
                file = f"{len(self):06d}-{name}.webp"
                try:
                    with (self._unfinished / file).open("wb") as stream:
                        stream.write(data)
                except OSError as error:
                    raise cannot_write(self.folder / file, error) from error
            self._ends.append(0)
        elif self._spool is not None:
            try:
                self._spool.seek(0, os.SEEK_END)
                self._spool.write(b" ".join(base64.b64encode(data) for data in files))
                self._spool.flush()
            except OSError as error:
                raise cannot_write(self._spooled, error) from error
            self._ends.append(self._spool.tell())
        return len(self) - 1

    def finish(self) -> None:
        """Replace the pictures of an earlier album in the folder by those of this one.

        Raises
        ------
        InputError
            When the system refuses.
        """
        if self.folder is None:
            return
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            for file in self.folder.iterdir():
                if _FILE.fullmatch(file.name) and not (self._unfinished / file.name).exists():
                    file.unlink()
            for file in self._unfinished.iterdir():
                file.replace(self.folder / file.name)
        except OSError as error:
            raise cannot_write(self.folder, error) from error

    def inline(self, number: int) -> str:
        """Return the pictures of an image in base64, separated by spaces, or '' with a folder."""
        if self._spool is None:
            return ""
        self._spool.seek(self._ends[number])
        return self._spool.read(self._ends[number + 1] - self._ends[number]).decode("ascii")

    def _encoded(self, draw: Draw) -> list[bytes]:
        """Encode the views as the largest WebP files that the budget allows.

        The search starts at the size of the image before, or one step above it.
        """
        for rung in range(self._rung, len(_RUNGS)):
            side, quality = _RUNGS[rung]
            files = [_webp(view, quality) for view in draw(side)]
            size = sum(map(len, files))
            if size <= self._budget:
                break
        self._rung = max(0, rung - 1) if size < _ROOM_LEFT * self._budget else rung
        return files

    def close(self) -> None:
        """Remove the temporary file or folder."""
        self._stack.close()
        if self._spool is not None:
            with suppress(OSError):  # what a full disk did not take cannot be written now either
                self._spool.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *failure: object) -> None:
        self.close()


def _webp(picture: Image.Image, quality: int) -> bytes:
    buffer = io.BytesIO()
    if max(picture.size) <= _EXACT:
        picture.save(buffer, "WEBP", lossless=True)
    else:
        picture.save(buffer, "WEBP", quality=quality, method=3)
    return buffer.getvalue()
