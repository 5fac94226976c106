"""Read PNM that is text or has another maximum than 255; Pillow is slow at these."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from anoscan.core.errors import InputError
from anoscan.images.formats.picture import (
    DAMAGED,
    Opened,
    check_size,
    damage,
    of_samples,
    open_file,
)

SUFFIXES = ".ppm .pgm .pnm .pbm"
_GAP = rb"(?:\s|#[^\r\n]*[\r\n])+"
# Binary or plain grey and colour, width, height and maximum; comments may stand between.
_HEAD = re.compile(rb"P([2356])" + _GAP + _GAP.join([rb"(\d{1,9})"] * 3) + rb"\s")
_HEAD_BYTES = 352  # as many as readers are shown
_LONGEST_HEAD = 65_536
_COMMENT = re.compile(rb"#[^\r\n]*")


def begins(head: bytes, name: str) -> bool:
    """Whether these are the first bytes of such a file."""
    found = _HEAD.match(head)
    if found is None:  # comments may be longer than the first bytes: then Pillow reads it
        return False
    return found[4] != b"255" or found[1] in b"23"


def count(file: Path) -> int:
    """Number of images in a file; only the first is read."""
    return 1


def read(file: Path, page: int | None, draft_side: int, *, deep: bool) -> Opened:
    """Decode the image of a file: grey of more than 8 bits as 16 bits, everything else as 8."""
    with open_file(file) as (source, digest), damage():
        return dataclasses.replace(_decoded(source), digest=digest)


def _decoded(source: IO[bytes]) -> Opened:
    head = _HEAD.match(source.read(_HEAD_BYTES))
    if head is None:
        raise InputError(DAMAGED)
    form, width, height, most = (int(part) for part in head.groups())
    if not 0 < most < 65_536:
        raise InputError(f"is PNM with a maximum of {most}: it must be 1 to 65535")
    check_size(width, height)
    samples = 3 if form in (3, 6) else 1
    source.seek(head.end())
    if form < 4:
        values = _plain(source, width * height * samples)
    else:
        kind = np.dtype(np.uint8 if most < 256 else ">u2")
        data = source.read(width * height * samples * kind.itemsize)
        if len(data) < width * height * samples * kind.itemsize:
            raise InputError("truncated image")
        values = np.frombuffer(data, kind)
    full = 65_535 if most > 255 and samples == 1 else 255
    if most != full or form < 4:
        # The table holds what Pillow computes for each level.
        table = np.rint(np.arange(most + 1) / most * full)
        table = np.concatenate([table, np.full(65_536 - len(table), full)])
        values = table.astype(np.uint16 if full > 255 else np.uint8)[values]
    values = values.reshape(height, width, samples)
    return of_samples(values.astype(np.uint16) if full > 255 else values)


def _plain(source: IO[bytes], count: int) -> NDArray[Any]:
    """Read numbers that are written as text."""
    words = _COMMENT.sub(b" ", source.read()).split(None, count)[:count]
    if len(words) < count:
        raise InputError("truncated image")
    return np.array(words).astype(np.int64).clip(0, 65_535)
