"""Read HDF5 with h5py: each dataset is an image, or a stack of them.

Nothing outside of the file is opened: external and soft links, external storage and virtual
datasets are passed over or refused.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from anoscan.core.errors import InputError
from anoscan.images.formats.npy import as_stack, names_of, opened_of, size_of
from anoscan.images.formats.picture import (
    LARGEST_FILE,
    Opened,
    check_pages,
    check_size,
    damage,
    reasons,
    regular,
)

SUFFIXES = ".h5 .hdf5"
_MAGIC = b"\x89HDF\r\n\x1a\n"
_MOST_OBJECTS, _DEEPEST = 10_000, 32  # groups and datasets of a file, and groups in each other


def begins(head: bytes, name: str) -> bool:
    """Whether these are the first bytes of an HDF5 file."""
    return head.startswith(_MAGIC)


def count(file: Path) -> int:
    """Number of images in a file."""
    return sum(stack.pages for stack in _stacks_of(file))


def names(file: Path) -> tuple[str, ...]:
    """Names of all pages: of the dataset, and in a stack of the number in it, from 0."""
    return names_of([(stack.name, stack.pages, stack.stacked) for stack in _stacks_of(file)])


def read(file: Path, page: int | None, draft_side: int, *, deep: bool, channels: int) -> Opened:
    """Read the only image of a file, or the one of a page."""
    index = (page or 1) - 1
    for stack in _stacks_of(file):
        if index >= stack.pages:
            index -= stack.pages
            continue
        if stack.refusal:
            raise InputError(stack.refusal)
        with damage(), _opened(file) as opened:
            array = opened[stack.name]
            check_size(*size_of(array.shape[1:] if stack.stacked else array.shape))
            return opened_of(array[index] if stack.stacked else array[()], channels)
    raise InputError("holds no arrays of two axes or more")


@dataclass(frozen=True)
class _Stack:
    """A dataset; `refusal` says why it is no image, and then it counts as one page."""

    name: str
    pages: int = 1
    stacked: bool = False
    refusal: str = ""


def _stacks_of(file: Path) -> tuple[_Stack, ...]:
    status = regular(file)
    return _stacks(file, status.st_size, status.st_mtime_ns)


@functools.lru_cache(maxsize=64)
def _stacks(file: Path, size: int, changed: int) -> tuple[_Stack, ...]:
    """List the datasets of a file; `size` and `changed` (ns) keep versions of the file apart."""
    with damage(), _opened(file) as opened:
        found = tuple(_stack(name, array) for name, array in _datasets(opened))
    check_pages(sum(stack.pages for stack in found))
    return found


@contextmanager
def _opened(file: Path) -> Iterator[Any]:
    try:
        import h5py
    except ImportError:
        raise InputError("is HDF5, which needs: pip install 'anoscan[hdf5]'") from None
    with reasons(), file.open("rb"):
        pass
    with h5py.File(file, "r", locking=False) as opened:
        yield opened


def _datasets(root: Any) -> Iterator[tuple[str, Any]]:
    """Yield the datasets of numbers with two axes or more, and their paths in the file."""
    import h5py

    waiting = [("", root)]
    seen: set[int] = set()
    while waiting:
        prefix, group = waiting.pop()
        inner = []
        for key in sorted(group):
            if not isinstance(group.get(key, getlink=True), h5py.HardLink):
                continue
            item, name = group[key], f"{prefix}{key}"
            address = h5py.h5o.get_info(item.id).addr
            if address in seen or len(seen) >= _MOST_OBJECTS:
                continue
            seen.add(address)
            if isinstance(item, h5py.Group):
                if name.count("/") < _DEEPEST:
                    inner.append((f"{name}/", item))
            elif isinstance(item, h5py.Dataset) and item.dtype.kind in "biuf" and item.ndim > 1:
                yield name, item
        waiting += reversed(inner)


def _stack(name: str, array: Any) -> _Stack:
    try:
        if array.external or array.is_virtual:
            raise InputError("is kept in other files, which are not opened")
        if array.chunks and array.dtype.itemsize * _product(array.chunks) > LARGEST_FILE:
            raise InputError("unpacks to more than 2 GiB")
        shape = as_stack(tuple(map(int, array.shape)))
    except InputError as error:
        return _Stack(name, refusal=f"{names_of([(name, 1, False)])[0]}: {error.message}")
    return _Stack(name, shape[0], len(shape) == array.ndim)


def _product(sides: tuple[int, ...]) -> int:
    return functools.reduce(lambda a, b: a * int(b), sides, 1)
