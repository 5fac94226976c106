"""Arrays that several rooms share: their type, their memory, and a choice of their rows."""

from __future__ import annotations

import math
import shutil
import tempfile
from collections.abc import Mapping
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from anoscan.core.errors import InputError

T = TypeVar("T")
Floats = NDArray[np.float32]
IN_MEMORY = 1024**3  # bytes of training pixels; more go to a temporary file


def allocate(shape: tuple[int, ...], in_memory: int = IN_MEMORY) -> Floats:
    """Room for pixels: in memory, or in a temporary file where they need more than `in_memory`.

    Raises
    ------
    InputError
        When the temporary folder has no room for them.
    """
    needed = 4 * math.prod(shape)
    if needed <= in_memory:
        return np.empty(shape, np.float32)
    # Writing to a mapped file on a full disk kills the process, so room is made sure of first.
    folder = tempfile.gettempdir()
    if shutil.disk_usage(folder).free < needed:
        raise InputError(
            f"the images need {needed / 1e9:.1f} GB in {folder}, which has less left.",
            hint="Set TMPDIR to a folder with more room, or train at a smaller --size.",
        )
    with tempfile.TemporaryFile() as file:  # without a name: gone with the last use of it
        return np.memmap(file, np.float32, mode="w+", shape=shape)


def evenly(rows: np.ndarray, most: int) -> np.ndarray:
    """At most so many of the rows, from all over: the first ones may all be of one folder."""
    n = len(rows)
    return rows if n <= most else rows[np.arange(most) * n // most]


def under(tensors: Mapping[str, T], prefix: str) -> dict[str, T]:
    """Entries whose names begin with a prefix, without it."""
    return {
        name.removeprefix(prefix): value
        for name, value in tensors.items()
        if name.startswith(prefix)
    }
