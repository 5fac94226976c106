"""Read TIFFs: one image, or one for each page.

Pillow reads the plain kind: uncompressed, 8 bits (grey also 16), one plane. tifffile reads all
others: Pillow opens many that it decodes to another picture, and its libtiff writes to stderr.
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

from anoscan.core.channels import PLAIN_CHANNELS
from anoscan.core.errors import InputError
from anoscan.images.formats import pillow, png, tiff_samples
from anoscan.images.formats.picture import (
    DAMAGED,
    LARGEST_FILE,
    MOST_PAGES,
    Opened,
    check_size,
    damage,
    open_file,
    reasons,
    regular,
)

SUFFIXES = ".tif .tiff .btf"
_MOST_TAGS = 4096
_KIND, _WIDTH, _HEIGHT = 254, 256, 257
_COPY_OR_MASK = 5  # bits of the kind: a smaller copy of another page, or a mask of it
_BITS, _COMPRESSION, _PHOTOMETRIC, _FILL_ORDER, _ORIENTATION = 258, 259, 262, 266, 274
_PLANES, _PREDICTOR, _INKS, _EXTRA, _SAMPLE_FORMAT = 284, 317, 332, 338, 339
_SAMPLES = 277
_PLAIN_COLOURS = (0, 1, 2, 3, 5, 8)  # white is 0, black is 0, RGB, palette, CMYK, LAB
_DEFLATE, _JPEG, _PNG = (8, 32946, 50013), 7, 34933
_MOST_DEFLATED = 1032  # bytes that one byte of deflate can become, at most
_UNCHECKED = 2**28  # bytes that a strip or tile may become without a check before
_STEP = 2**20  # bytes that such a check inflates at a time

# tifffile logs what is unusual about a file; without a handler the log would go to stderr.
logging.getLogger("tifffile").addHandler(logging.NullHandler())


def begins(head: bytes, name: str) -> bool:
    """Whether these are the first bytes of a TIFF."""
    return head[:4] in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")


def count(file: Path) -> int:
    """Number of images in a file; smaller copies of an image and masks do not count."""
    return len(_directories(file))


def read(file: Path, page: int | None, draft_side: int, *, deep: bool, channels: int) -> Opened:
    """Decode the only image of a file, or the one of a page; see `anoscan.images.formats.read`."""
    if page is None:
        with open_file(file) as (source, digest):
            return _decoded(source, draft_side, deep, channels, digest)
    with reasons():
        raw = _Page(file, _directories(file)[page - 1])
    with io.BufferedReader(raw) as source:
        return _decoded(source, draft_side, deep, channels, b"")


def _decoded(
    source: IO[bytes], draft_side: int, deep: bool, channels: int, digest: bytes
) -> Opened:
    try:
        image = pillow.identified(source)
    except pillow.Undecodable as refusal:
        return _by_tifffile(source, deep, channels, digest, refusal)
    tags = getattr(image, "tag_v2", {})
    count = tags.get(_SAMPLES, 1)
    # Pillow drops the samples that are no colours.
    many = channels not in PLAIN_CHANNELS and count in (channels, 2, *range(5, 256))
    if _is_plain(image, deep) and not many:
        return pillow.loaded(image, draft_side, digest)
    return _by_tifffile(source, deep, channels, digest)


def _is_plain(image: Any, deep: bool) -> bool:
    """Whether a page is of the kind that Pillow decodes right without libtiff.

    That is 8 bits, grey of 16 bits, and unless `deep` colours of 16 bits, which Pillow reduces.
    """
    tags = getattr(image, "tag_v2", {})
    bits = set(tags.get(_BITS, (1,)))
    extra = tags.get(_EXTRA, ())
    colour, grey = tags.get(_PHOTOMETRIC) == 2, tags.get(_PHOTOMETRIC) == 1
    return (
        (bits == {8} or (bits == {16} and (grey or (colour and not deep))))
        and tags.get(_COMPRESSION, 1) == 1
        and tags.get(_PHOTOMETRIC) in _PLAIN_COLOURS
        and tags.get(_INKS, 1) == 1
        and set(tags.get(_SAMPLE_FORMAT, (1,))) == {1}
        and tags.get(_PLANES, 1) == 1
        and tags.get(_FILL_ORDER, 1) == 1
        and tags.get(_PREDICTOR, 1) == 1
        and (not extra or (colour and set(extra[:1]) <= {0, 2} and set(extra[1:]) <= {0}))
    )


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
        while 0 < at < size and at not in seen and len(seen) < MOST_PAGES:
            seen.add(at)
            try:
                tags, following = form.directory(source, at)
            except struct.error:
                break
            (kind,) = struct.unpack_from(form.value, tags.get(_KIND, bytes(4)))
            if not found or (tags.keys() >= {_WIDTH, _HEIGHT} and not kind & _COPY_OR_MASK):
                found.append(at)
            at = following
    return tuple(found)


# --- what Pillow cannot read --------------------------------------------------------------------


def _by_tifffile(
    source: IO[bytes],
    deep: bool,
    channels: int,
    digest: bytes,
    refusal: InputError | None = None,
) -> Opened:
    """Decode the first page with tifffile; where it is damaged, Pillow's `refusal` may say more."""
    import tifffile

    try:
        with damage():
            source.seek(0)
            with tifffile.TiffFile(source) as file:
                return dataclasses.replace(_first_page(file, deep, channels), digest=digest)
    except InputError as error:
        if error.message == DAMAGED and refusal and "truncated" in refusal.message:
            raise refusal from None
        raise


def _first_page(file: Any, deep: bool, channels: int) -> Opened:
    page = file.pages.first
    check_size(page.imagewidth, page.imagelength)
    if page.imagedepth != 1:
        raise InputError("is a TIFF of a volume in one page, which is not read: save slices")
    layout = tiff_samples.Layout.of(page, channels)
    _check_segments(page, layout.bits, file.filehandle.size)
    samples = tiff_samples.stored(page, layout)
    turned = page.tags.valueof(_ORIENTATION, 1)
    turned = turned if isinstance(turned, int) and 1 <= turned <= 8 else 1
    with np.errstate(all="ignore"):  # of floats that are not finite, which are refused later
        opened = tiff_samples.meaning(_upright(samples, turned), page, layout, deep=deep)
    return dataclasses.replace(
        opened, width=page.imagewidth, height=page.imagelength, orientation=turned
    )


def _upright(samples: tiff_samples.Raw, turned: int) -> tiff_samples.Raw:
    """Turn stored samples (height, width, n) by their orientation, as Pillow does."""
    samples = samples.swapaxes(0, 1) if turned >= 5 else samples
    samples = samples[:, ::-1] if turned in (2, 3, 6, 7) else samples
    return samples[::-1] if turned in (3, 4, 7, 8) else samples


def _check_segments(page: Any, bits: int, size: int) -> None:
    """Refuse strips and tiles that are missing, truncated, or inflate to more than their size.

    `size` is the size of the file in bytes. Tiles of no bytes at no place are empty on purpose.
    """
    parts = list(zip(page.dataoffsets, page.databytecounts, strict=False))
    if len(parts) < math.prod(page.chunked):
        raise InputError(DAMAGED)
    samples = math.prod(page.chunks)
    whole = samples * -(-bits // 8)
    if whole > LARGEST_FILE:
        raise InputError("has too many pixels to be decoded safely")
    plain = page.compression == 1 and not page.is_subsampled
    least = samples // page.chunks[-1] * bits * page.chunks[-1] // 8 if plain else 1
    for offset, length in parts:
        if bool(offset) != bool(length):
            raise InputError(DAMAGED)
        if offset + (min(length, least) if plain else length) > size:
            raise InputError("truncated image")
    if page.compression in _DEFLATE:
        _check_inflated(page.parent.filehandle, parts, whole)
    if page.compression == _JPEG:
        _check_ends(page.parent.filehandle, parts)
    if page.compression == _PNG:
        for offset, length in parts:
            page.parent.filehandle.seek(offset)
            png.checked(io.BytesIO(page.parent.filehandle.read(length)))


def _check_inflated(file: Any, parts: list[tuple[int, int]], whole: int) -> None:
    for offset, length in parts:
        if length * _MOST_DEFLATED > _UNCHECKED:
            file.seek(offset)
            inflating = zlib.decompressobj()
            left, rest = whole + 1, file.read(length)
            while rest and left > 0:
                left -= len(inflating.decompress(rest, _STEP))
                rest = inflating.unconsumed_tail
            if left <= 0:
                raise InputError(DAMAGED)


def _check_ends(file: Any, parts: list[tuple[int, int]]) -> None:
    """Refuse JPEGs without their end; a decoder would fill what is missing with grey."""
    for offset, length in parts:
        file.seek(offset)
        if length and b"\xff\xd9" not in file.read(length):
            raise InputError("truncated image")
