"""Where images count: inside a mask that the user gives, or the borders that all normals share."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from anoscan import formats
from anoscan.errors import InputError
from anoscan.formats import Opened
from anoscan.images import ImageFile, named, shallow_image
from anoscan.roi import LARGEST, Roi

AUTO = "auto"
_LOOKED_AT = 512  # images
_LEVELS = 2  # of 255: what a constant border may differ by
_LEAST = 0.25  # of a side must remain: else it is no border
UPRIGHT: dict[int, Callable[[NDArray[Any]], NDArray[Any]]] = {  # of rows, columns and maybe more
    1: lambda x: x,
    2: lambda x: x[:, ::-1],
    3: lambda x: x[::-1, ::-1],
    4: lambda x: x[::-1],
    5: lambda x: x.swapaxes(0, 1),
    6: lambda x: np.rot90(x, -1),
    7: lambda x: x[::-1, ::-1].swapaxes(0, 1),
    8: lambda x: np.rot90(x),
}


def chosen(
    roi: str | Path | None, files: Sequence[ImageFile], *, workers: int, seed: int
) -> Roi | None:
    """Region that ``--roi`` names: of a mask, or of `AUTO`; None without, or with no border.

    Raises
    ------
    InputError
        When the mask cannot be used.
    """
    if roi is None:
        return None
    return within_borders(files, workers=workers, seed=seed) if roi == AUTO else read(Path(roi))


def read(file: Path) -> Roi:
    """Region of a mask, upright: anything but black is inside (in a JPEG, what is bright).

    Raises
    ------
    InputError
        When it cannot be read, or nothing is inside.
    """
    try:
        opened, least = stored_mask(file)
        picture = opened.picture
        if isinstance(picture, Image.Image):
            inside = np.asarray(shallow_image(picture, 1).convert("L")) >= least
        else:
            inside = picture != 0 if picture.ndim == 2 else (picture != 0).any(2)
        return Roi.of(UPRIGHT[opened.pending](inside))
    except InputError as error:
        raise InputError(f"--roi {file}: {error.message}.") from None
    except ValueError:
        raise InputError(
            f"--roi {file} is black: nothing would count.", hint="White marks what counts."
        ) from None


def stored_mask(file: Path) -> tuple[Opened, int]:
    """A mask as it is stored, and the grey level from which it marks.

    In a JPEG, which is nowhere exactly black, that is half of the brightest; otherwise 1.

    Raises
    ------
    InputError
        Whose message is the bare reason, without the path.
    """
    image = named(str(file), file, file.name)
    opened = formats.read(image.file, image.page, draft_side=2**31, deep=True)
    return opened, 128 if getattr(opened.picture, "format", None) == "JPEG" else 1


# --- borders ------------------------------------------------------------------------------------


def within_borders(files: Sequence[ImageFile], *, workers: int, seed: int) -> Roi | None:
    """What lies inside the borders that are constant in all images, at most 512 of them.

    Where images differ in size, borders are compared in shares of their sides. None where there
    is no common border.
    """
    some = list(files)
    if len(some) > _LOOKED_AT:
        some = random.Random(seed).sample(some, _LOOKED_AT)
    with ThreadPoolExecutor(workers, thread_name_prefix="borders") as pool:
        found = [size for size in pool.map(_borders, some) if size is not None]
    if not found:
        return None
    sizes = {whole for whole, _ in found}
    shares = np.min([np.divide(border, (*whole, *whole)) for whole, border in found], axis=0)
    height, width = min(sizes) if len(sizes) == 1 else (LARGEST, LARGEST)
    height, width = min(height, LARGEST), min(width, LARGEST)
    ends = np.floor(shares * (height, width, height, width) + 1e-6).astype(int)
    top, left, bottom, right = ends.tolist()
    if not ends.any() or height - top - bottom < _LEAST * height:
        return None
    if width - left - right < _LEAST * width:
        return None
    mask = np.zeros((height, width), np.bool_)
    mask[top : height - bottom, left : width - right] = True
    return Roi.of(mask)


Sides = tuple[int, int, int, int]  # rows or columns: top, left, bottom, right


def _borders(image: ImageFile) -> tuple[tuple[int, int], Sides] | None:
    """Upright (height, width) of an image and its constant borders; None where all is constant."""
    try:
        opened = formats.read(image.file, image.page, draft_side=2 * LARGEST, deep=True)
    except InputError:
        return None
    picture = opened.picture
    samples = np.asarray(
        shallow_image(picture, 3) if isinstance(picture, Image.Image) else picture, np.float32
    )
    reach = np.ptp(samples) * _LEVELS / 255 if opened.depth else _LEVELS
    samples = UPRIGHT[opened.pending](samples if samples.ndim == 3 else samples[..., None])
    varied = (np.abs(samples - samples[0, 0]) > reach).any(2)
    other = (np.abs(samples - samples[-1, -1]) > reach).any(2)
    rows, columns = varied.any(1), varied.any(0)
    ends = other.any(1), other.any(0)
    if not all(side.any() for side in (rows, columns, *ends)):
        return None
    height, width = varied.shape
    top, left = int(rows.argmax()), int(columns.argmax())
    bottom, right = (int(side[::-1].argmax()) for side in ends)
    return (height, width), (top, left, bottom, right)
