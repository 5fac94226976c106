"""Masks: the region of interest of a model, and the true defects of labelled images."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from anoscan.core.channels import AS_STORED
from anoscan.core.errors import InputError
from anoscan.images.decode import UPRIGHT, Decoded, shallow_image
from anoscan.images.files import ImageFile, named
from anoscan.images.formats.picture import Opened
from anoscan.images.pool import Failed, read_all, read_one
from anoscan.images.roi import LARGEST, Roi

AUTO = "auto"
_LOOKED_AT = 512  # images whose borders are examined, at most
_LEVELS = 2  # of 255 levels, by which samples of a constant border may differ
_LEAST = 0.25  # share of a side that must be left inside; else the borders are not used
# Functions that make an array (height, width, ...) upright, by the EXIF orientation of its image.
UPRIGHT_ARRAYS: dict[int, Callable[[NDArray[Any]], NDArray[Any]]] = {
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
    roi: str | Path | None,
    files: Sequence[ImageFile],
    *,
    workers: int,
    seed: int,
    channels: int | None = 3,
) -> Roi | None:
    """Return the region of interest of the option ``--roi``; None without one.

    `roi` is the file of a mask, or `AUTO` for what lies inside the common borders of the images, of
    which `seed` draws some. Without common borders there is no region either. The images have so
    many `channels`; None takes those that they have.

    Raises
    ------
    InputError
        When the mask cannot be used.
    """
    if roi is None:
        return None
    if roi != AUTO:
        return read(Path(roi))
    return within_borders(files, workers=workers, seed=seed, channels=channels or AS_STORED)


def read(file: Path) -> Roi:
    """Return the region of interest of a mask's file, made upright; all but black is inside.

    In a JPEG, grey levels of 128 and more are inside.

    Raises
    ------
    InputError
        When the mask cannot be read, or nothing is inside.
    """
    try:
        opened, least = stored_mask(file)
        picture = opened.picture
        if isinstance(picture, Image.Image):
            inside = np.asarray(shallow_image(picture, 1).convert("L")) >= least
        else:
            inside = picture != 0 if picture.ndim == 2 else (picture != 0).any(2)
        return Roi.of(UPRIGHT_ARRAYS[opened.pending](inside))
    except InputError as error:
        raise InputError(f"--roi {file}: {error.message}.") from None
    except ValueError:
        raise InputError(
            f"--roi {file} is black: nothing would count.", hint="White marks what counts."
        ) from None


def stored_mask(file: Path) -> tuple[Opened, int]:
    """Return a mask as it is stored, and the lowest grey level that counts as marked.

    The level is 1. In a JPEG, which is nowhere exactly black, it is 128.

    Raises
    ------
    InputError
        When the mask cannot be read. The message is the bare reason, without the path.
    """
    return read_one(_stored_mask, named(str(file), file, file.name))


def _stored_mask(image: ImageFile) -> tuple[Opened, int]:
    opened = image.read(draft_side=2**31, deep=True)
    return opened, 128 if getattr(opened.picture, "format", None) == "JPEG" else 1


# --- borders ------------------------------------------------------------------------------------


def within_borders(
    files: Sequence[ImageFile], *, workers: int, seed: int, channels: int = 3
) -> Roi | None:
    """Return the region inside the borders that are constant in all images; None without any.

    At most 512 images are examined, drawn by the seed. A border is constant where samples differ by
    at most 2 of 255 levels. In images of different sizes, borders are compared as shares of the
    sides. There is no region either where less than a quarter of a side would be left.
    """
    some = list(files)
    if len(some) > _LOOKED_AT:
        some = random.Random(seed).sample(some, _LOOKED_AT)
    outcomes = (
        outcome for _, outcome in read_all(partial(_borders, channels=channels), some, workers)
    )
    found = [size for size in outcomes if size is not None and not isinstance(size, Failed)]
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


Sides = tuple[int, int, int, int]  # rows or columns at the top, left, bottom and right


def _borders(image: ImageFile, channels: int) -> tuple[tuple[int, int], Sides] | None:
    """Return upright (height, width) and constant borders; None where all is constant."""
    opened = image.read(draft_side=2 * LARGEST, deep=True, channels=channels)
    picture = opened.picture
    samples = np.asarray(
        shallow_image(picture, 3) if isinstance(picture, Image.Image) else picture, np.float32
    )
    reach = np.ptp(samples) * _LEVELS / 255 if opened.depth else _LEVELS
    samples = UPRIGHT_ARRAYS[opened.pending](samples if samples.ndim == 3 else samples[..., None])
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


def read_mask(file: Path, decoded: Decoded) -> NDArray[np.bool_]:
    """Return the mask (height, width) of an image's defects, upright; True where it is anomalous.

    It has the image's own resolution. Anything but black is marked; in a JPEG, grey levels of 128
    and more are. A mask of the image's stored size without an EXIF orientation is made upright as
    the image is.

    Raises
    ------
    InputError
        When the mask cannot be read, or its size is not that of the image. The message is the bare
        reason, without the path.
    """
    opened, least = stored_mask(file)
    picture = opened.picture
    if not isinstance(picture, Image.Image):
        deep = picture != 0
        picture = Image.fromarray((deep.any(2) if deep.ndim == 3 else deep).astype(np.uint8))
    if picture.mode in ("P", "PA", "LA", "RGBA"):  # a palette image holds numbers of colours
        picture = picture.convert("L" if picture.mode == "LA" else "RGB")
    stored, upright = (decoded.width, decoded.height), decoded.shape[::-1]
    turn = opened.pending
    if opened.orientation == 1 and picture.size == stored:
        turn = decoded.orientation
    if turn != 1:
        picture = picture.transpose(UPRIGHT[turn])
    if picture.size != upright:
        raise InputError(
            f"mask of {picture.width}x{picture.height} pixels for an image of "
            f"{upright[0]}x{upright[1]}"
        )
    marked = np.asarray(np.asarray(picture) >= least, np.bool_)
    return np.asarray(marked.any(2), np.bool_) if marked.ndim == 3 else marked
