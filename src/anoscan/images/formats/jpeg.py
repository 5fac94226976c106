"""Read JPEGs with Pillow, and those of more than 8 bits with imagecodecs."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import IO

from anoscan.images.formats import pillow
from anoscan.images.formats.picture import Opened, check_size, damage, of_samples, open_file

SUFFIXES = ".jpg .jpeg .jpe .jfif"
_NO_FRAME = (0xC4, 0xC8, 0xCC)  # markers among those of frames that begin other segments
_LOSSLESS = (0xC3, 0xC7, 0xCB, 0xCF)
_WHOLE = 2**31  # side of pixels that no JPEG has: none is reduced to it


def begins(head: bytes, name: str) -> bool:
    """Whether these are the first bytes of a JPEG."""
    return head.startswith(b"\xff\xd8\xff")


def count(file: Path) -> int:
    """Number of images in a file; thumbnails and further pictures do not count."""
    return 1


def read(file: Path, page: int | None, draft_side: int, *, deep: bool) -> Opened:
    """Decode the image of a file; a lossless JPEG has no lower resolution to decode at."""
    with open_file(file) as (source, digest):
        kind, bits, width, height = _frame(source)
        source.seek(0)
        if bits > 8:
            check_size(width, height)
            return dataclasses.replace(_decoded(source, bits), digest=digest)
        whole = kind in _LOSSLESS
        return pillow.loaded(pillow.identified(source), _WHOLE if whole else draft_side, digest)


def _frame(source: IO[bytes]) -> tuple[int, int, int, int]:
    """Return marker, bits of a sample, width and height of the frame; zeros where there is none."""
    source.seek(2)
    while True:
        while (mark := source.read(1)) == b"\xff":
            pass
        head = source.read(2)
        if len(head) < 2 or not mark:
            return 0, 0, 0, 0
        kind = mark[0]
        if 0xC0 <= kind <= 0xCF and kind not in _NO_FRAME:
            frame = source.read(5).ljust(5, b"\0")
            sides = int.from_bytes(frame[3:5]), int.from_bytes(frame[1:3])
            return kind, frame[0], *sides
        source.seek(max(int.from_bytes(head) - 2, 0), 1)


def _decoded(source: IO[bytes], bits: int) -> Opened:
    import imagecodecs

    with damage():
        samples = imagecodecs.jpeg8_decode(source.read())
        return of_samples(samples, full=(0.0, 2.0**bits - 1))
