"""Read NumPy's ``.npy`` and ``.npz``: images, or stacks of them. Nothing is ever unpickled.

Files are read and not mapped, since a mapped file that shrinks would end the process.
"""

from __future__ import annotations

import functools
import math
import threading
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from anoscan.core.channels import MOST_CHANNELS
from anoscan.core.errors import InputError
from anoscan.images.formats.picture import (
    LARGEST_FILE,
    Opened,
    are_channels,
    check_pages,
    check_size,
    damage,
    of_samples,
    reasons,
    regular,
)

SUFFIXES = ".npy .npz"
_COLOURS = (1, 3, 4)  # samples of a pixel: grey, RGB, RGB with opacity
_LONGEST = 100  # characters of a part of a name of an array
_MAGIC, _ZIP = b"\x93NUMPY", b"PK\x03\x04"
_STEP = 2**22  # bytes that are read at a time where others lie between
# NumPy reads a header with ast.literal_eval, which sometimes fails in two threads at once. Python
# before 3.11.7 and 3.12.1 counts its depth for all threads together (issue 106905 of CPython).
_header = threading.Lock()


def begins(head: bytes, name: str) -> bool:
    """Whether these are the first bytes of an array, or of a zip file whose first entry is one."""
    entry = head[30 : 30 + int.from_bytes(head[26:28], "little")]
    return head.startswith(_MAGIC) or (head.startswith(_ZIP) and entry.endswith(b".npy"))


def count(file: Path) -> int:
    """Number of images in a file."""
    return sum(stack.pages for stack in _stacks_of(file))


def names(file: Path) -> tuple[str, ...]:
    """Names of all pages of a zip file; () for a file of one array, whose pages have numbers.

    They are of the array, and in a stack of the number in it, from 0.
    """
    stacks = _stacks_of(file)
    if any(stack.member is None for stack in stacks):
        return ()
    return names_of([(str(s.member).removesuffix(".npy"), s.pages, s.stacked) for s in stacks])


def names_of(arrays: Sequence[tuple[str, int, bool]]) -> tuple[str, ...]:
    """Names of the pages of arrays, given as (name, pages, whether it is a stack).

    They become parts of paths of files that are written. So there is no part such as ``..``, and
    what is no letter, digit, or one of ``._-`` becomes ``_``. There are none, (), where that makes
    two names the same.
    """
    found: list[str] = []
    for name, pages, stacked in arrays:
        parts = [
            "".join(c if c.isalnum() or c in "._-" else "_" for c in part)[:_LONGEST]
            for part in name.split("/")
        ]
        safe = "/".join(part if part.strip(".") else "_" for part in parts)
        digits = max(3, len(str(pages - 1)))
        found += [f"{safe}/{n:0{digits}d}" for n in range(pages)] if stacked else [safe]
    return tuple(found) if len(set(found)) == len(found) else ()


def read(file: Path, page: int | None, draft_side: int, *, deep: bool, channels: int) -> Opened:
    """Read the only image of a file, or the one of a page."""
    index = (page or 1) - 1
    for stack in _stacks_of(file):
        if index < stack.pages:
            return opened_of(stack.image(file, index), channels)
        index -= stack.pages
    raise InputError("holds no arrays")


@dataclass(frozen=True)
class _Stack:
    """An array of a file: `member` in a zip file, or the file itself.

    `shape` is that of `as_stack`, and `start` the bytes before the numbers. `stacked` says whether
    the array itself has the n. `refusal` says why an array is no image; it counts as one page,
    which is refused.
    """

    member: str | None
    shape: tuple[int, ...] = (1, 0, 0)
    by_columns: bool = False
    kind: np.dtype[Any] | None = None
    start: int = 0
    refusal: str = ""
    stacked: bool = False

    @property
    def pages(self) -> int:
        return self.shape[0]

    def image(self, file: Path, index: int) -> NDArray[Any]:
        if self.kind is None:
            raise InputError(self.refusal)
        check_size(*size_of(self.shape[1:]))
        numbers, size = math.prod(self.shape[1:]), self.kind.itemsize
        with damage(), _opened(file, self.member) as source:
            if not self.by_columns or self.pages == 1:
                source.seek(self.start + index * numbers * size)
                flat: NDArray[Any] = np.frombuffer(_exactly(source, numbers * size), self.kind)
            else:
                source.seek(self.start)
                flat = self._every(source, index, numbers, self.kind)
        if self.by_columns:
            return flat.reshape(self.shape[:0:-1]).T
        return flat.reshape(self.shape[1:])

    def _every(
        self, source: IO[bytes], index: int, numbers: int, kind: np.dtype[Any]
    ) -> NDArray[Any]:
        """Read one number of each column of `pages` numbers; columns lie one after another."""
        found = np.empty(numbers, kind)
        columns = max(1, _STEP // (self.pages * kind.itemsize))
        for start in range(0, numbers, columns):
            some = min(columns, numbers - start)
            data = _exactly(source, some * self.pages * kind.itemsize)
            found[start : start + some] = np.frombuffer(data, kind)[index :: self.pages]
        return found


def _exactly(source: IO[bytes], length: int) -> bytes:
    data = source.read(length)
    if len(data) < length:
        raise InputError("truncated image")
    return data


@contextmanager
def _opened(file: Path, member: str | None) -> Iterator[IO[bytes]]:
    with reasons():
        source = file.open("rb")
    with source:
        if member is None:
            yield source
            return
        with zipfile.ZipFile(source) as archive, archive.open(member) as inner:
            yield inner


# --- headers ------------------------------------------------------------------------------------


def _stacks_of(file: Path) -> tuple[_Stack, ...]:
    status = regular(file)
    return _stacks(file, status.st_size, status.st_mtime_ns)


@functools.lru_cache(maxsize=64)
def _stacks(file: Path, size: int, changed: int) -> tuple[_Stack, ...]:
    """Read the headers of a file; `size` and `changed` (ns) keep versions of the file apart."""
    with reasons(), file.open("rb") as source:
        packed = source.read(len(_ZIP)) == _ZIP
    with damage():
        if not packed:
            found = [_stack(file, None, size)]
        else:
            with zipfile.ZipFile(file) as archive:
                members = archive.infolist()
            found = [_member(file, member) for member in members]
    check_pages(sum(stack.pages for stack in found))
    return tuple(found)


def _member(file: Path, member: zipfile.ZipInfo) -> _Stack:
    """Read the header of an array in a zip file; what is wrong with it concerns no other array."""
    try:
        if member.flag_bits & 1:
            raise InputError("is encrypted")
        if member.compress_type != zipfile.ZIP_STORED and member.file_size > LARGEST_FILE:
            raise InputError("unpacks to more than 2 GiB")
        return _stack(file, member.filename, member.file_size)
    except InputError as error:
        name = "".join(c if c.isprintable() else "?" for c in member.filename[:60])
        return _Stack(member.filename, refusal=f"{name}: {error.message}")


def _stack(file: Path, member: str | None, size: int) -> _Stack:
    """Read the header of an array of `size` bytes."""
    with damage(), _opened(file, member) as source, _header:
        version = np.lib.format.read_magic(source)
        read = np.lib.format.read_array_header_1_0
        if version > (1, 0):
            read = np.lib.format.read_array_header_2_0
        shape, by_columns, kind = read(source)
        start = source.tell()
    if kind.hasobject:
        raise InputError("holds Python objects, which are never read")
    whole = as_stack(shape)
    stack = _Stack(member, whole, by_columns, kind, start, stacked=whole == shape)
    if start + math.prod(shape) * kind.itemsize > size:
        raise InputError("truncated image")
    return stack


def as_stack(array: tuple[int, ...]) -> tuple[int, ...]:
    """Shape of an array, which may lack the n of (n, height, width) or (n, height, width, samples).

    In a stack, samples may also come first: (n, samples, height, width). More samples than colours
    have are told from sides by their number: see `_are_samples`.
    """
    shape = "x".join(map(str, array)) or "one number"
    if min(array, default=0) < 0:
        raise InputError(f"is an array of {shape}")
    first, last = _are_samples(array[-3:], 0), _are_samples(array[-3:], 2)
    if len(array) == 4 and (array[3] in _COLOURS or first or last) and array[0]:
        return array
    if len(array) == 2 or (len(array) == 3 and (array[2] in _COLOURS or last)):
        return (1, *array)
    if len(array) != 3 or array[2] == 2 or not math.prod(array):
        raise InputError(f"is an array of {shape}: an image is HxW or HxWx3, a stack NxHxW")
    if array[0] in _COLOURS[1:]:
        raise InputError(
            f"is an array of {shape}: colours, or a stack? Save it as HxWxC or NxHxWx1"
        )
    return array


def _are_samples(shape: tuple[int, ...], axis: int) -> bool:
    """Whether an axis of an image (2 to 16 long, the others longer) counts samples of a pixel."""
    sides = [length for place, length in enumerate(shape) if place != axis]
    return (
        len(shape) == 3
        and 2 <= shape[axis] <= MOST_CHANNELS
        and min(sides, default=0) > MOST_CHANNELS
    )


def size_of(shape: tuple[int, ...]) -> tuple[int, int]:
    """Width and height of an image of a stack, given the shape of the image."""
    height, width = shape[1:] if _are_samples(shape, 0) else shape[:2]
    return width, height


def opened_of(image: NDArray[Any], channels: int) -> Opened:
    """Make an image of an array, whose samples may come first; `channels` as in `formats.read`."""
    if _are_samples(image.shape, 0):
        image = np.moveaxis(image, 0, 2)
    return of_samples(image, many=image.ndim == 3 and are_channels(image.shape[2], channels))
