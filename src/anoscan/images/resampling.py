"""Resize pictures of one number a pixel, a few rows at a time."""

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
    """Resize samples (h, w) to `size` (height, width), as float32.

    Samples that have the size already are returned as they are, with their own dtype. Large
    pictures never become floats as a whole, which would take much memory.
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
    """Resize a picture; yield strips from the top down, after the row at which each begins.

    A strip is float32 (at most `rows`, width). `read` maps (top, end) to these rows of the picture,
    float32. `shape` and `size` are (height, width) of the picture and of the result.
    """
    for top in range(0, size[0], rows):
        yield top, part(read, shape, size, top, min(top + rows, size[0]))


def part(read: Read, shape: tuple[int, int], size: tuple[int, int], top: int, end: int) -> Floats:
    """Return rows from `top` to `end` of a picture that is resized (bilinear); see `strips`.

    Parts meet without a seam, because each is made of all rows that contribute to it.
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
