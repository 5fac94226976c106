"""Anomaly maps as files: pictures for people, arrays for programs.

Files are upright and have the resolution of the image, pictures up to `LONGEST` pixels a side. The
map of a large image is never in memory as a whole: its rows wait in a temporary file.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from anoscan import pictures
from anoscan.errors import UsageError
from anoscan.images import Decoded
from anoscan.maps import Scale
from anoscan.pictures import MAP_SUFFIXES
from anoscan.tiles import Canvas, block_side
from anoscan.writing import replacing

LONGEST = 2048  # pixels a side of a picture
STRIP = 2**22  # pixels of a map that are in memory at a time
_ROWS_A_STRIP = 64  # of a TIFF

Floats = NDArray[np.float32]
Read = Callable[[int, int], Floats]


class Atlas:
    """Writes the maps of images, each in the forms that are wanted.

    Parameters
    ----------
    folder : path
        Mirrors the tree of the images.
    forms : tuple of str
        Some of `scores.MAP_FORMS`.
    """

    def __init__(self, folder: str | Path, forms: tuple[str, ...]) -> None:
        if unknown := set(forms) - set(MAP_SUFFIXES):
            raise UsageError(f"there is no form of maps named {sorted(unknown)[0]!r}.")
        self._folder, self._forms = Path(folder), forms
        self._spool: IO[bytes] | None = None

    @property
    def drawn(self) -> bool:
        """Whether pictures of the images are wanted."""
        return bool({"overlay", "side-by-side"} & set(self._forms))

    def spool(self, canvas: Canvas) -> Callable[[int, Floats], None] | None:
        """Where rows of the map of the next image go, from the top down; None if not needed."""
        # What is small enough comes whole to `write`.
        if block_side(canvas.height, canvas.width) == 1 or not set(self._forms) - {
            "overlay",
            "side-by-side",
        }:
            return None
        spool = self._spool = tempfile.TemporaryFile()  # noqa: SIM115 - see write
        return lambda top, rows: rows.tofile(spool)

    def write(
        self,
        decoded: Decoded,
        canvas: Canvas,
        oddness: Floats,
        level: float,
        scale: Scale,
    ) -> dict[str, str]:
        """Write all forms of one image.

        Parameters
        ----------
        decoded : Decoded
        canvas : Canvas
            The image to draw.
        oddness : ndarray of shape (h, w)
            Its map, or what `tiles.Reduced` left of it; its rows are in the spool then.
        level : float
            What the mask shows is above it.
        scale : Scale
            Of all maps of the model.

        Returns
        -------
        dict from a form to the path of its file.

        Raises
        ------
        InputError
            When a file cannot be written.
        """
        targets = {
            form: pictures.output_path(self._folder, decoded.image.inside, MAP_SUFFIXES[form])
            for form in self._forms
        }
        if self.drawn:
            drawn = pictures.overlay(canvas.reduced(LONGEST), oddness, scale.brightest)
            if "overlay" in targets:
                pictures.save_png(drawn[2], targets["overlay"])
            if "side-by-side" in targets:
                pictures.save_png(pictures.row(drawn), targets["side-by-side"])
        rows = self._rows(decoded, oddness)
        if "npy" in targets:
            with replacing(targets["npy"]) as file:
                _write_npy(file, rows)
        if "tiff" in targets:
            with replacing(targets["tiff"]) as file:
                _write_tiff(file, rows)
        if "mask" in targets:
            pictures.save_png(_mask(rows, level), targets["mask"])
        if self._spool is not None:
            self._spool.close()
            self._spool = None
        return {form: target.as_posix() for form, target in targets.items()}

    def _rows(self, decoded: Decoded, oddness: Floats) -> Rows:
        turned = decoded.orientation >= 5
        size = (decoded.width, decoded.height) if turned else (decoded.height, decoded.width)
        if self._spool is None:
            return Rows(lambda top, end: oddness[top:end], oddness.shape, size)
        shape, spool = (decoded.canvas.height, decoded.canvas.width), self._spool

        def read(top: int, end: int) -> Floats:
            spool.seek(4 * top * shape[1])
            return np.fromfile(spool, np.float32, (end - top) * shape[1]).reshape(-1, shape[1])

        return Rows(read, shape, size)


class Rows:
    """A map enlarged to the size of its image, a few rows at a time.

    Parameters
    ----------
    read : callable
        (top, end) -> rows of the map.
    shape : (int, int)
        Of the map.
    size : (int, int)
        Height and width of the image.
    """

    def __init__(self, read: Read, shape: tuple[int, ...], size: tuple[int, int]) -> None:
        self._read, self._shape, self.size = read, shape, size

    def strips(self, most: int | None = None) -> Iterator[tuple[int, Floats]]:
        """All rows from the top down, with the number of the first of each strip."""
        height, width = self.size
        many = most or max(1, STRIP // width)
        for top in range(0, height, many):
            yield top, self._strip(top, min(top + many, height))

    def _strip(self, top: int, end: int) -> Floats:
        height, width = self.size
        if self._shape == self.size:
            return self._read(top, end)
        # Bilinear, from the rows that count and no others, so that strips meet without a seam.
        unit = self._shape[0] / height
        places = np.clip((np.arange(top, end) + 0.5) * unit - 0.5, 0, self._shape[0] - 1)
        first = int(places[0])
        some = self._read(first, min(int(places[-1]) + 2, self._shape[0]))
        wide = Image.fromarray(np.ascontiguousarray(some))
        across = np.asarray(wide.resize((width, len(some)), Image.Resampling.BILINEAR))
        above = places.astype(int) - first
        below, share = np.minimum(above + 1, len(some) - 1), (places % 1)[:, None]
        mixed: Floats = (across[above] * (1 - share) + across[below] * share).astype(np.float32)
        return mixed


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
