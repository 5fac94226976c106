"""Read PNGs: colours of 16 bits with imagecodecs, because Pillow reduces them to 8; others with it.

A colour key (tRNS), which makes one colour transparent, counts at every depth.
"""

from __future__ import annotations

import dataclasses
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from anoscan.core.errors import InputError
from anoscan.images.formats import pillow
from anoscan.images.formats.picture import DAMAGED, Opened, damage, of_samples, open_file

SUFFIXES = ".png .apng"
_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_HEADER = struct.Struct(">IIBBBBB")  # width, height, bits, colour type, two methods, interlacing
_GREY, _RGB = 0, 2
_SAMPLES = {_GREY: 1, _RGB: 3, 3: 1, 4: 2, 6: 4}  # samples of a pixel by colour type
_KIND = 9  # place of the colour type in the header
# Starts and steps of the seven passes of an interlaced image: column, row, columns, rows.
_PASSES = (
    *((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4)),
    *((0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2)),
)
_STEP = 2**20  # bytes that are inflated at a time


def begins(head: bytes, name: str) -> bool:
    """Whether these are the first bytes of a PNG."""
    return head.startswith(_SIGNATURE)


def count(file: Path) -> int:
    """Number of images in a file; further ones of an animation do not count."""
    return 1


def read(file: Path, page: int | None, draft_side: int, *, deep: bool) -> Opened:
    """Decode the image of a file; colours are reduced to 8 bits unless `deep`."""
    with open_file(file) as (source, digest):
        image = pillow.identified(source)
        source.seek(len(_SIGNATURE) + 8)
        _, _, bits, kind, *_ = _HEADER.unpack(source.read(_HEADER.size))
        key = image.info.get("transparency")
        if kind == _GREY:
            return _without_key(pillow.loaded(image, draft_side, digest), key, bits)
        if bits < 16 or not (deep or key is not None):
            return pillow.loaded(image, draft_side, digest)
        orientation = pillow.stored_orientation(image)
        with damage():
            samples = _decoded(source)
            if not deep:
                samples = np.rint(samples / 257).astype(np.uint8)
            opened = of_samples(samples)
    return dataclasses.replace(opened, digest=digest, orientation=orientation, pending=orientation)


def _without_key(opened: Opened, key: Any, bits: int) -> Opened:
    """Blacken the grey level `key` of `bits` bits, which Pillow takes for one of 8 bits."""
    picture = opened.picture
    if not isinstance(key, int):
        return opened
    if isinstance(picture, np.ndarray):
        return dataclasses.replace(opened, picture=np.where(picture == key, 0, picture))
    del picture.info["transparency"]
    level = min(key * 255 // (2**bits - 1), 255)  # of 1 bit, Pillow has scaled the key already
    seen = picture.convert("L").point(lambda value: 0 if value == level else value)
    return dataclasses.replace(opened, picture=seen)


# --- colours of 16 bits -------------------------------------------------------------------------


def _decoded(source: IO[bytes]) -> NDArray[np.uint16]:
    """Decode a PNG to samples (height, width, n), uint16; a colour key has become an opacity."""
    import imagecodecs

    header, key, packed = checked(source)
    if key and (header[_KIND] != _RGB or len(key) != 6):
        raise InputError(DAMAGED)
    # libpng prints what it finds strange, so it gets no more than the chunks that it needs.
    kept = [(b"IHDR", header), (b"tRNS", key), (b"IDAT", packed), (b"IEND", b"")]
    whole = b"".join(_chunk(name, data) for name, data in kept if data or name == b"IEND")
    found: NDArray[np.uint16] = imagecodecs.png_decode(_SIGNATURE + whole)
    return found


def checked(source: IO[bytes]) -> tuple[bytes, bytes, bytes]:
    """Return header, colour key and compressed rows of a PNG, whose checksums and lengths fit.

    Raises
    ------
    InputError
        When they do not fit.
    """
    source.seek(len(_SIGNATURE))
    parts = dict(_chunks(source, (b"IHDR", b"tRNS")))
    source.seek(len(_SIGNATURE))
    packed = b"".join(data for _, data in _chunks(source, (b"IDAT",)))
    width, height, bits, kind, *_, interlaced = _HEADER.unpack(parts[b"IHDR"])
    _check_rows(packed, _rows(width, height, bits * _SAMPLES[kind], interlaced))
    return parts[b"IHDR"], parts.get(b"tRNS", b""), packed


def _chunk(name: bytes, data: bytes) -> bytes:
    length, check = len(data).to_bytes(4), zlib.crc32(name + data).to_bytes(4)
    return length + name + data + check


def _chunks(source: IO[bytes], wanted: tuple[bytes, ...]) -> Iterator[tuple[bytes, bytes]]:
    """Yield those chunks up to the last that are wanted, as (name, data); checksums must fit."""
    while True:
        head = source.read(8)
        length, name = int.from_bytes(head[:4]), head[4:]
        if name == b"IEND":
            return
        if len(name) < 4:
            raise InputError("truncated image")
        if name not in wanted:
            source.seek(length + 4, 1)
            continue
        data = source.read(length)
        check = source.read(4)
        if len(check) < 4:
            raise InputError("truncated image")
        if zlib.crc32(name + data) != int.from_bytes(check):
            raise InputError(DAMAGED)
        yield name, data


def _rows(width: int, height: int, size: int, interlaced: int) -> int:
    """Bytes of the inflated rows of an image; `size` is the number of bits of a pixel."""
    passes = _PASSES if interlaced else ((0, 0, 1, 1),)
    total = 0
    for left, top, across, down in passes:
        columns, rows = -(-(width - left) // across), -(-(height - top) // down)
        total += rows * (1 + -(-columns * size // 8)) if columns > 0 and rows > 0 else 0
    return total


def _check_rows(packed: bytes, expected: int) -> None:
    """Refuse compressed rows that inflate to another number of bytes, a few at a time."""
    inflating, found, rest = zlib.decompressobj(), 0, packed
    while not inflating.eof and found <= expected:
        data = inflating.decompress(rest, _STEP)
        rest = inflating.unconsumed_tail
        found += len(data)
        if not data and not rest:
            raise InputError("truncated image")
    if found != expected:
        raise InputError(DAMAGED)
