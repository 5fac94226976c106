"""Read TIFFs: one image, or one for each page.

Pillow reads the files that it knows, and tifffile those that it does not, or not at full depth.
"""

from __future__ import annotations

import dataclasses
import functools
import io
import logging
import math
import struct
import zlib
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from anoscan.core.errors import InputError
from anoscan.images.formats import pillow
from anoscan.images.formats.picture import (
    DAMAGED,
    LARGEST_FILE,
    Opened,
    check_size,
    damage,
    of_samples,
    open_file,
    reasons,
    regular,
)

SUFFIXES = ".tif .tiff"
MOST_PAGES = 100_000
_MOST_TAGS = 4096
_KIND, _WIDTH, _HEIGHT = 254, 256, 257
_COPY_OR_MASK = 5  # bits of the kind: a smaller copy of another page, or a mask of it
_ORIENTATION, _PLANES, _OPACITY = 274, 2, 2
_DEFLATE = (8, 32946, 50013)
_MOST_DEFLATED = 1032  # bytes that one byte of deflate can become, at most
_UNCHECKED = 2**28  # bytes that a strip or tile may become without a check before
_STEP = 2**20  # bytes that such a check inflates at a time
_COLOURS = {0: 1, 1: 1, 2: 3}  # samples of a pixel by photometric: white is 0, black is 0, RGB

# tifffile logs what is unusual about a file; without a handler the log would go to stderr.
logging.getLogger("tifffile").addHandler(logging.NullHandler())


def begins(head: bytes, name: str) -> bool:
    """Whether these are the first bytes of a TIFF."""
    return head[:4] in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")


def count(file: Path) -> int:
    """Number of images in a file; smaller copies of an image and masks do not count."""
    return len(_directories(file))


def read(file: Path, page: int | None, draft_side: int, *, deep: bool) -> Opened:
    """Decode the only image of a file, or the one of a page; see `anoscan.images.formats.read`."""
    if page is None:
        with open_file(file) as (source, digest):
            return _decoded(source, draft_side, deep, digest)
    with reasons():
        raw = _Page(file, _directories(file)[page - 1])
    with io.BufferedReader(raw) as source:
        return _decoded(source, draft_side, deep, b"")


def _decoded(source: IO[bytes], draft_side: int, deep: bool, digest: bytes) -> Opened:
    try:
        image = pillow.identified(source)
    except pillow.Undecodable as refusal:
        return _by_tifffile(source, refusal, digest)
    if deep and pillow.loses_depth(image):
        return _by_tifffile(source, None, digest)
    return pillow.loaded(image, draft_side, digest)


# --- pages --------------------------------------------------------------------------------------


class _Page(io.FileIO):
    """A page as a TIFF file of its own: as read, the head names `offset` as the first directory."""

    def __init__(self, file: Path, offset: int) -> None:
        super().__init__(file)
        form = _Form.of(super().read(16))
        self._head = form.head + struct.pack(form.offset, offset)
        self.seek(0)

    def readinto(self, buffer: Any) -> int:
        start = self.tell()
        n = super().readinto(buffer) or 0
        overlap = self._head[start : start + n]
        memoryview(buffer).cast("B")[: len(overlap)] = overlap
        return n


class _Form:
    """Form of the numbers in a TIFF: their byte order, and their widths in TIFF or BigTIFF."""

    def __init__(self, order: str, big: bool, head: bytes) -> None:
        self.head = head[: 8 if big else 4]
        self.number, self.offset = order + ("Q" if big else "H"), order + ("Q" if big else "I")
        self.entry = order + ("HHQ8s" if big else "HHI4s")
        self.value = order + "I"

    @classmethod
    def of(cls, head: bytes) -> _Form:
        return cls("<" if head[:2] == b"II" else ">", 43 in head[2:4], head)

    def directory(self, source: IO[bytes], at: int) -> tuple[dict[int, bytes], int]:
        """Return the raw values of a directory by tag, and the offset of the next or 0.

        It raises struct.error where there is no directory.
        """
        source.seek(at)
        block = source.read(struct.calcsize(self.number))
        (entries,) = struct.unpack(self.number, block)
        size = struct.calcsize(self.entry)
        if entries > _MOST_TAGS:
            raise struct.error("no directory")
        block = source.read(entries * size + struct.calcsize(self.offset))
        tags = struct.iter_unpack(self.entry, block[: entries * size])
        (following,) = struct.unpack_from(self.offset, block, entries * size)
        return {tag: value for tag, _, _, value in tags}, following


def _directories(file: Path) -> tuple[int, ...]:
    status = regular(file)
    return _walk(file, status.st_size, status.st_mtime_ns)


@functools.lru_cache(maxsize=64)
def _walk(file: Path, size: int, changed: int) -> tuple[int, ...]:
    """Return the offsets of those directories of a file that are images, and always the first.

    A damaged directory ends the list. `size` and `changed` (ns) keep versions of the file apart.
    """
    found: list[int] = []
    seen: set[int] = set()
    with reasons(), file.open("rb") as source:
        head = source.read(16).ljust(16, b"\0")
        form = _Form.of(head)
        (at,) = struct.unpack_from(form.offset, head, len(form.head))
        while at and at not in seen and len(seen) < MOST_PAGES:
            seen.add(at)
            try:
                tags, following = form.directory(source, at)
            except (struct.error, OverflowError):
                break
            (kind,) = struct.unpack_from(form.value, tags.get(_KIND, bytes(4)))
            if not found or (tags.keys() >= {_WIDTH, _HEIGHT} and not kind & _COPY_OR_MASK):
                found.append(at)
            at = following
    return tuple(found)


# --- what Pillow cannot read --------------------------------------------------------------------


def _by_tifffile(source: IO[bytes], refusal: InputError | None, digest: bytes) -> Opened:
    """Decode the first page with tifffile; where it is damaged, raise Pillow's `refusal`."""
    import tifffile

    try:
        with damage():
            source.seek(0)
            with tifffile.TiffFile(source) as file:
                return dataclasses.replace(_first_page(file), digest=digest)
    except InputError as error:
        if refusal is not None and error.message == DAMAGED:
            raise refusal from None
        raise


def _first_page(file: Any) -> Opened:
    page = file.pages.first
    check_size(page.imagewidth, page.imagelength)
    colours = _COLOURS.get(page.photometric)
    extra = page.samplesperpixel - (colours or 0)
    if colours is None or page.imagedepth != 1 or extra not in (0, 1):
        raise InputError(
            f"is a TIFF of {page.samplesperpixel} samples a pixel "
            f"({getattr(page.photometric, 'name', page.photometric)}): save it as grey or RGB"
        )
    _check_segments(page, file.filehandle.size)
    samples = _samples(page)
    if page.photometric == 0 and samples.dtype.kind == "u":  # white is 0
        samples = np.iinfo(samples.dtype).max - samples
    if extra and tuple(page.extrasamples) != (_OPACITY,):
        samples = samples[..., :-1]  # no opacity, or one that colours were multiplied by
    opened = of_samples(samples)
    turned = page.tags.valueof(_ORIENTATION, 1)
    turned = turned if isinstance(turned, int) and 1 <= turned <= 8 else 1
    return dataclasses.replace(opened, orientation=turned, pending=turned)


def _samples(page: Any) -> NDArray[Any]:
    """Samples (height, width, samples a pixel) of a page that `_check_segments` accepted."""
    try:
        samples = page.asarray(maxworkers=1)
    except ValueError as error:
        if "imagecodecs" not in str(error):
            raise
        name = getattr(page.compression, "name", page.compression)
        raise InputError(
            f"its {name} compression needs imagecodecs: pip install 'anoscan[tiff]'"
        ) from None
    if page.samplesperpixel > 1 and page.planarconfig == _PLANES:
        samples = np.moveaxis(samples, 0, -1)
    return np.asarray(samples).reshape(page.imagelength, page.imagewidth, page.samplesperpixel)


def _check_segments(page: Any, size: int) -> None:
    """Refuse strips and tiles that are missing, truncated, or inflate to more than their size.

    `size` is the size of the file in bytes.
    """
    parts = list(zip(page.dataoffsets, page.databytecounts, strict=False))
    if len(parts) < math.prod(page.chunked):
        raise InputError(DAMAGED)
    if any(offset + length > size for offset, length in parts):
        raise InputError("truncated image")
    whole = math.prod(page.chunks) * page.dtype.itemsize
    if whole > LARGEST_FILE:
        raise InputError("has too many pixels to be decoded safely")
    if page.compression not in _DEFLATE:
        return
    for offset, length in parts:
        if length * _MOST_DEFLATED > _UNCHECKED:
            page.parent.filehandle.seek(offset)
            inflating = zlib.decompressobj()
            left, rest = whole + 1, page.parent.filehandle.read(length)
            while rest and left > 0:
                left -= len(inflating.decompress(rest, _STEP))
                rest = inflating.unconsumed_tail
            if left <= 0:
                raise InputError(DAMAGED)
