"""Read NumPy's ``.npy``: one image, or a stack of them. Nothing is ever unpickled."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from anoscan.core.errors import InputError
from anoscan.images.formats.picture import Opened, damage, of_samples, regular

SUFFIXES = ".npy"
_COLOURS = (1, 3, 4)  # samples of a pixel: grey, RGB, RGB with opacity
# NumPy reads a header with ast.literal_eval, which sometimes fails in two threads at once. Python
# before 3.11.7 and 3.12.1 counts its depth for all threads together (issue 106905 of CPython).
_header = threading.Lock()


def begins(head: bytes, name: str) -> bool:
    """Whether these are the first bytes of an ``.npy`` file."""
    return head.startswith(b"\x93NUMPY")


def count(file: Path) -> int:
    """Number of images in a file."""
    return len(_stack(file))


def read(file: Path, page: int | None, draft_side: int, *, deep: bool) -> Opened:
    """Read the only image of a file, or the one of a page."""
    return of_samples(_stack(file)[(page or 1) - 1])


def _stack(file: Path) -> NDArray[Any]:
    """Map the images of a file, (n, height, width) or (n, height, width, samples)."""
    regular(file)
    with damage(), _header:
        try:
            array = np.lib.format.open_memmap(file, mode="r")
        except ValueError as error:
            if "Python objects" not in str(error):
                raise
            raise InputError("holds Python objects, which are never read") from None
    shape = "x".join(map(str, array.shape)) or "one number"
    if array.ndim == 4 and array.shape[3] in _COLOURS:
        return array
    if array.ndim == 2 or (array.ndim == 3 and array.shape[2] in _COLOURS):
        return array[None]
    if array.ndim != 3 or array.shape[2] == 2 or not array.size:
        raise InputError(f"is an array of {shape}: an image is HxW or HxWx3, a stack NxHxW")
    if array.shape[0] in _COLOURS[1:]:
        raise InputError(
            f"is an array of {shape}: colours, or a stack? Save it as HxWxC or NxHxWx1"
        )
    return array
