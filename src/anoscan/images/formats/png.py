"""Read PNGs with colours of 16 bits with torchvision, because Pillow reduces them to 8 bits."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from anoscan.core.errors import InputError
from anoscan.images.formats import pillow
from anoscan.images.formats.picture import Opened, memory, of_samples, open_file

SUFFIXES = ".png"
_SIGNATURE = b"\x89PNG\r\n\x1a\n"
# Bytes of the header. They are slices, because a truncated file may lack them.
_DEPTH, _COLOUR_TYPE = slice(24, 25), slice(25, 26)
_SIXTEEN, _GREY = b"\x10", b"\0"  # Pillow keeps all 16 bits of grey
_CUT = re.compile("Out of bound read")


def begins(head: bytes, name: str) -> bool:
    """Whether these are the first bytes of such a PNG."""
    deep = head.startswith(_SIGNATURE) and head[_DEPTH] == _SIXTEEN
    return deep and head[_COLOUR_TYPE] != _GREY


def count(file: Path) -> int:
    """Number of images in a file."""
    return 1


def read(file: Path, page: int | None, draft_side: int, *, deep: bool) -> Opened:
    """Decode the image of a file; it is reduced to 8 bits unless `deep`."""
    with open_file(file) as (source, digest):
        image = pillow.identified(source)
        if not deep:
            return pillow.loaded(image, draft_side, digest)
        orientation = pillow.stored_orientation(image)
        source.seek(0)
        with memory():
            opened = of_samples(_decoded(bytearray(source.read())))
    return dataclasses.replace(opened, digest=digest, orientation=orientation, pending=orientation)


def _decoded(content: bytearray) -> NDArray[np.uint16]:
    """Decode a PNG to samples (height, width, n), uint16."""
    # Imported here, so that decoding other images does not wait for torch.
    import torch
    from torchvision.io import ImageReadMode, decode_png

    try:
        pixels = decode_png(torch.frombuffer(content, dtype=torch.uint8), ImageReadMode.UNCHANGED)
    except RuntimeError as error:
        cut = _CUT.search(str(error))
        raise InputError("truncated image" if cut else "damaged image") from None
    samples: NDArray[np.uint16] = pixels.permute(1, 2, 0).numpy()
    return samples
