"""Read images with Pillow: JPEG, BMP, WebP and GIF, and the plain kinds of PNG, PNM and TIFF."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from anoscan.core.errors import InputError
from anoscan.images.formats.picture import (
    DAMAGE,
    DAMAGED,
    KINDS,
    Deep,
    Opened,
    check_size,
    finite,
    memory,
    open_file,
    silence,
)

SUFFIXES = ".bmp .dib .webp .gif"
# Pillow decides by content. Some of its other formats run programs: EPS starts Ghostscript.
_FORMATS = ("PNG", "JPEG", "TIFF", "BMP", "WEBP", "GIF", "PPM", "DIB")
_DEEP_MODES = frozenset({"I;16", "I;16L", "I;16B", "I;16N", "I", "F"})
_ORIENTATION, _BITS, _SAMPLE_FORMAT, _PHOTOMETRIC = 0x0112, 0x0102, 0x0153, 0x0106
_BAND = 2**22  # pixels that are copied at a time
_CUT = re.compile("truncated|not enough image data|EOF")
_UNSUPPORTED = re.compile(r"Unsupported BMP (bitfields|compression|pixel depth|header)")
_BMP_WORDS = {"bitfields": "layout of bits", "header": "kind of header"}


# Pillow logs what is unusual about a file; without a handler the log would go to stderr.
logging.getLogger("PIL").addHandler(logging.NullHandler())


class _Damaged(InputError):
    """Error for content that Pillow finds damaged or does not know."""


class Undecodable(InputError):
    """Error for a header that Pillow cannot read."""


def read(file: Path, draft_side: int) -> Opened:
    """Decode the first frame of a file.

    A JPEG may be decoded at a lower resolution, but not below a side of `draft_side` pixels.
    """
    with open_file(file) as (source, digest):
        return loaded(identified(source), draft_side, digest)


def identified(source: IO[bytes]) -> Image.Image:
    """Read the header of an image, but not its pixels.

    Raises
    ------
    Undecodable
        When Pillow cannot read the header.
    InputError
        When the image is too small or too large.
    """
    silence()
    try:
        with _plain_reasons():
            image: Image.Image = Image.open(source, formats=_FORMATS)
    except _Damaged as error:
        raise Undecodable(error.message) from None
    check_size(*image.size)
    return image


def loaded(image: Image.Image, draft_side: int, digest: bytes) -> Opened:
    """Decode an image that `identified` returned; `digest` is that of its file."""
    silence()
    with _plain_reasons():
        width, height = image.size
        # While loading, Pillow makes TIFFs upright and drops their orientation, so it is read
        # before. For other formats this could already load the image and hide a failure.
        turned = stored_orientation(image) if image.format == "TIFF" else 1
        image.draft(None, (draft_side, draft_side))
        image.load()
    pending = stored_orientation(image)
    if pending == 1 and turned >= 5:
        width, height = image.size[::-1]
    orientation = max(turned, pending)
    if image.mode not in _DEEP_MODES:
        return Opened(image, width, height, digest=digest, orientation=orientation, pending=pending)
    return Opened(
        _deep(image),
        width,
        height,
        digest=digest,
        depth=_depth(image),
        full=(0.0, 1.0) if image.mode == "F" else (0.0, 65535.0),
        orientation=orientation,
        pending=pending,
    )


def loses_depth(image: Image.Image) -> bool:
    """Whether a TIFF has colours of more bits than Pillow keeps."""
    bits = getattr(image, "tag_v2", {}).get(_BITS, (8,))
    return max(bits, default=8) > 8 and image.mode not in _DEEP_MODES


def _is_negative(image: Image.Image) -> bool:
    return image.format == "TIFF" and getattr(image, "tag_v2", {}).get(_PHOTOMETRIC) == 0


def _deep(image: Image.Image) -> Deep:
    with _plain_reasons():
        samples = _samples(image)
    if image.mode == "I" and image.format == "TIFF":
        tags = getattr(image, "tag_v2", {})
        if (tags.get(_SAMPLE_FORMAT, (1,)), tags.get(_BITS, (1,))) == ((1,), (32,)):
            samples = samples.view(np.uint32)  # Pillow has no unsigned mode of 32 bits
    if _is_negative(image) and samples.dtype.kind == "u":
        # White is 0. Pillow inverts samples of 8 bits and fewer itself.
        bits = getattr(image, "tag_v2", {}).get(_BITS, (16,))[0]
        brightest = 2 ** min(bits, 8 * samples.dtype.itemsize) - 1
        samples = samples.dtype.type(brightest) - samples
    return finite(samples)


def _samples(image: Image.Image) -> NDArray[Any]:
    """Samples (height, width), copied a few rows at a time, because Pillow needs two copies."""
    width, height = image.size
    rows = max(1, _BAND // width)
    if rows >= height:
        return np.asarray(image)
    samples: NDArray[Any] | None = None
    for top in range(0, height, rows):
        band = np.asarray(image.crop((0, top, width, min(top + rows, height))))
        if samples is None:
            samples = np.empty((height, width), band.dtype)
        samples[top : top + len(band)] = band
    return np.asarray(samples)


def _depth(image: Image.Image) -> str:
    if image.mode == "F":
        return "32-bit float"
    # Pillow widens 16-bit PGM (and in older versions PNG) to 32 bits.
    short = image.mode != "I" or image.format in ("PNG", "PPM")
    return "16-bit grey" if short else "32-bit grey"


def stored_orientation(image: Image.Image) -> int:
    """EXIF orientation of an image, 1 to 8; 1 where none can be read."""
    try:
        value = image.getexif().get(_ORIENTATION, 1)
    except DAMAGE:  # damaged metadata is no reason to refuse the image
        return 1
    return value if isinstance(value, int) and 1 <= value <= 8 else 1


@contextmanager
def _plain_reasons() -> Iterator[None]:
    try:
        with memory():
            yield
    except UnidentifiedImageError:
        raise _Damaged(f"not a {KINDS} file") from None
    except Image.DecompressionBombError:
        raise InputError("has too many pixels to be decoded safely") from None
    except DAMAGE as error:
        if feature := _UNSUPPORTED.search(str(error)):
            what = _BMP_WORDS.get(feature[1], feature[1])
            raise InputError(f"is a BMP whose {what} is not read: save it as PNG") from None
        cut = isinstance(error, EOFError) or _CUT.search(str(error))
        raise _Damaged("truncated image" if cut else DAMAGED) from None
