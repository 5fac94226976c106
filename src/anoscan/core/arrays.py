"""Helpers for arrays: their type, their memory, and a selection of their rows."""

from __future__ import annotations

import math
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from anoscan.core.errors import InputError

T = TypeVar("T")
Floats = NDArray[np.float32]
IN_MEMORY = 1024**3  # bytes of training pixels; larger arrays go to a temporary file


_folder: Path | None = None  # where arrays of `allocate` lie


@contextmanager
def in_folder(folder: Path) -> Iterator[None]:
    """Let `allocate` put arrays into the file ``pixels`` of a folder, for other processes to map.

    Only one array can be allocated in this context.
    """
    global _folder
    _folder = folder
    try:
        yield
    finally:
        _folder = None


def allocate(shape: tuple[int, ...], in_memory: int = IN_MEMORY) -> Floats:
    """Return a float32 array of a shape, whose values are not set.

    An array of more than `in_memory` bytes lies in a temporary file, and every one in the context
    of `in_folder`.

    Raises
    ------
    InputError
        When the temporary folder has no room for the array.
    """
    needed = 4 * math.prod(shape)
    if needed <= in_memory and _folder is None:
        return np.empty(shape, np.float32)
    # A write to a mapped file on a full disk kills the process, so check the room first.
    folder = tempfile.gettempdir()
    if shutil.disk_usage(folder).free < needed:
        raise InputError(
            f"the images need {needed / 1e9:.1f} GB in {folder}, which has less left.",
            hint="Set TMPDIR to a folder with more room, or train at a smaller --size.",
        )
    if _folder is not None:
        return np.memmap(_folder / "pixels", np.float32, mode="w+", shape=shape)
    with tempfile.TemporaryFile() as file:  # has no name, and is gone after its last use
        return np.memmap(file, np.float32, mode="w+", shape=shape)


def evenly(rows: np.ndarray, most: int) -> np.ndarray:
    """Return at most `most` of the rows, evenly spread: the first may all come from one folder."""
    n = len(rows)
    return rows if n <= most else rows[np.arange(most) * n // most]


def under(tensors: Mapping[str, T], prefix: str) -> dict[str, T]:
    """Return the entries whose names begin with `prefix`, with the prefix removed."""
    return {
        name.removeprefix(prefix): value
        for name, value in tensors.items()
        if name.startswith(prefix)
    }
