"""Write anomaly maps as files: pictures for people, arrays for programs.

Files show the upright image and have its resolution; pictures have at most `LARGEST_PICTURE` pixels
a side. The rows of the map of a large image wait in a temporary file, never all in memory.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np
from PIL import Image

from anoscan.core.arrays import Floats
from anoscan.core.errors import UsageError
from anoscan.core.files import cannot_write, replacing
from anoscan.images import resampling
from anoscan.images.canvas import Canvas
from anoscan.images.decode import Decoded
from anoscan.images.resampling import Read
from anoscan.images.tiles import block_side
from anoscan.report import pictures
from anoscan.report.pictures import MAP_SUFFIXES

STRIP = 2**22  # pixels of a map that are in memory at a time
DRAWN = ("overlay", "side-by-side")  # the forms that are pictures of the image itself
_ROWS_A_STRIP = 64  # rows in a strip of a TIFF


class MapFiles:
    """Writes the anomaly maps of images, each in several forms.

    Parameters
    ----------
    folder : path
        Folder of the files, which mirrors the tree of the images.
    forms : tuple of str
        Some of `choices.MAP_FORMS`: 'overlay', 'side-by-side', 'npy', 'tiff', 'mask'.

    Raises
    ------
    UsageError
        For a form that does not exist.
    """

    def __init__(self, folder: str | Path, forms: tuple[str, ...]) -> None:
        if unknown := set(forms) - set(MAP_SUFFIXES):
            raise UsageError(f"there is no form of maps named {sorted(unknown)[0]!r}.")
        self._folder, self._forms = Path(folder), forms
        self._spool: IO[bytes] | None = None

    def spool(self, canvas: Canvas) -> Callable[[int, Floats], None] | None:
        """Return a function that keeps the rows of the next map, or None where none are needed.

        It takes (row number, rows), from the top down. A temporary file keeps the rows until
        `write`.

        Raises
        ------
        InputError
            When the temporary file cannot be written; the function raises it too.
        """
        self._forget()  # the rows of an image that was given up before `write`
        # A map that is small enough is given to `write` as a whole.
        if block_side(canvas.height, canvas.width) == 1 or not set(self._forms) - set(DRAWN):
            return None
        where = f"the rows of a map to a temporary file in {tempfile.gettempdir()}"
        try:
            spool = self._spool = tempfile.TemporaryFile(buffering=0)  # noqa: SIM115 - see write
        except OSError as error:
            raise cannot_write(where, error) from error

        def keep(top: int, rows: Floats) -> None:
            data = np.ascontiguousarray(rows, np.float32).data.cast("B")
            try:
                while data:
                    data = data[spool.write(data) :]
            except OSError as error:
                raise cannot_write(where, error) from error

        return keep

    def write(
        self,
        decoded: Decoded,
        anomaly_map: Floats,
        level: float,
        draw: Callable[[str], Image.Image],
    ) -> dict[str, str]:
        """Write all forms of the map of one image, and return the path of the file of each form.

        Parameters
        ----------
        decoded : Decoded
        anomaly_map : ndarray of shape (h, w)
            Its map. For a large image it is reduced by `tiles.Reduced`, and the rows of the full
            map were given to the function of `spool`.
        level : float
            Value of the map above which the mask is white.
        draw : callable
            Draws one of the forms `DRAWN`.

        Raises
        ------
        InputError
            When a file cannot be written.
        """
        targets = {
            form: pictures.output_path(self._folder, decoded.image.inside, MAP_SUFFIXES[form])
            for form in self._forms
        }
        for form in DRAWN:
            if form in targets:
                pictures.save_png(draw(form), targets[form])
        try:
            self._write_rows(targets, self._rows(decoded, anomaly_map), level)
        finally:
            self._forget()
        return {form: target.as_posix() for form, target in targets.items()}

    def _write_rows(self, targets: dict[str, Path], rows: Rows, level: float) -> None:
        if "npy" in targets:
            with replacing(targets["npy"]) as file:
                _write_npy(file, rows)
        if "tiff" in targets:
            with replacing(targets["tiff"]) as file:
                _write_tiff(file, rows)
        if "mask" in targets:
            pictures.save_png(_mask(rows, level), targets["mask"])

    def _forget(self) -> None:
        if self._spool is not None:
            with suppress(OSError):
                self._spool.close()
            self._spool = None

    def _rows(self, decoded: Decoded, anomaly_map: Floats) -> Rows:
        size = decoded.shape
        if self._spool is None:
            height, width = anomaly_map.shape
            return Rows(lambda top, end: anomaly_map[top:end], (height, width), size)
        shape, spool = (decoded.canvas.height, decoded.canvas.width), self._spool

        def read(top: int, end: int) -> Floats:
            spool.seek(4 * top * shape[1])
            return np.fromfile(spool, np.float32, (end - top) * shape[1]).reshape(-1, shape[1])

        return Rows(read, shape, size)


@dataclass(frozen=True)
class Rows:
    """A map that is resized to its image a few rows at a time.

    `read` returns the rows from `top` to `end`, float32. `shape` and `size` are height and width of
    the map and of the upright image.
    """

    read: Read
    shape: tuple[int, int]
    size: tuple[int, int]

    def strips(self, most: int | None = None) -> Iterator[tuple[int, Floats]]:
        """Yield all rows in strips, from the top down, each with the number of its first row.

        A strip has `most` rows; without `most`, it has about `STRIP` pixels.
        """
        rows = most or max(1, STRIP // self.size[1])
        yield from resampling.strips(self.read, self.shape, self.size, rows)


def _write_npy(file: IO[bytes], rows: Rows) -> None:
    header = {"descr": "<f4", "fortran_order": False, "shape": rows.size}
    np.lib.format.write_array_header_1_0(file, header)
    for _, strip in rows.strips():
        file.write(strip.astype("<f4").tobytes())


def _write_tiff(file: IO[bytes], rows: Rows) -> None:
    import tifffile

    tifffile.imwrite(
        file,
        (strip for _, strip in rows.strips(_ROWS_A_STRIP)),
        shape=rows.size,
        dtype=np.float32,
        rowsperstrip=_ROWS_A_STRIP,
        photometric="minisblack",
        metadata=None,
    )


def _mask(rows: Rows, level: float) -> Image.Image:
    height, width = rows.size
    mask = Image.new("L", (width, height))
    for top, strip in rows.strips():
        mask.paste(Image.fromarray(np.where(strip > level, np.uint8(255), np.uint8(0))), (0, top))
    return mask
