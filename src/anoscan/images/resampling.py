"""Pictures of one number a pixel at another size, a few rows at a time."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from anoscan.core.arrays import Floats

LARGEST = 2**24  # pixels that are resampled at a time
Read = Callable[[int, int], Floats]


def whole(samples: NDArray[np.uint16] | Floats, size: tuple[int, int]) -> NDArray[Any]:
    """Samples (h, w) at another size, float32; as they are where they have it.

    Large ones never become floats as a whole.
    """
    height, width = samples.shape
    if (height, width) == size:
        return samples

    def read(top: int, end: int) -> Floats:
        return np.ascontiguousarray(samples[top:end], np.float32)

    rows = max(1, LARGEST // width * size[0] // height)
    return np.concatenate([strip for _, strip in strips(read, (height, width), size, rows)])


def strips(
    read: Read, shape: tuple[int, int], size: tuple[int, int], rows: int
) -> Iterator[tuple[int, Floats]]:
    """A picture at another size from the top down, with the row that each strip begins at.

    Parameters
    ----------
    read : callable
        (top, end) -> rows of the picture, float32.
    shape : (int, int)
        Height and width of the picture.
    size : (int, int)
        Height and width wanted.
    rows : int
        Of a strip.
    """
    for top in range(0, size[0], rows):
        yield top, part(read, shape, size, top, min(top + rows, size[0]))


def part(read: Read, shape: tuple[int, int], size: tuple[int, int], top: int, end: int) -> Floats:
    """Rows from `top` to `end` of a picture at another size (bilinear); see `strips`.

    Parts meet without a seam: each is made of all rows that count for it.
    """
    if shape == size:
        return read(top, end)
    unit = shape[0] / size[0]
    reach = max(unit, 1.0) + 1
    first = max(math.floor(top * unit - reach), 0)
    some = read(first, min(math.ceil(end * unit + reach), shape[0]))
    bottom = shape[0] if end == size[0] else end * unit
    box = (0, top * unit - first, shape[1], bottom - first)
    picture = Image.fromarray(np.ascontiguousarray(some))
    resized = picture.resize((size[1], end - top), Image.Resampling.BILINEAR, box=box)
    return np.asarray(resized)
