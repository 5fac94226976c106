"""Draw letters in hundreds of typefaces, as a set on which no choice of the score was made."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Iterable
from pathlib import PurePosixPath
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageFont

LETTERS = "ABCDEFGHIJ"
SIDE, LONGEST = 28, 22  # pixels: side of an image, and longer side of the letter in its middle
TRAIN_FAMILIES = 179  # of 256: a family is for training if its hash's first byte is less (70 %)

_POINTS = 48  # letters are drawn larger than shown, then reduced
_MISSING = "\U0010fffe"  # no font has this character, so its glyph marks missing ones

Pixels = npt.NDArray[np.uint8]


def alphabets(fonts: Iterable[tuple[str, bytes]]) -> dict[str, npt.NDArray[Any]]:
    """Draw every letter in every font that has all of them.

    Parameters
    ----------
    fonts : iterable of (path, content)
        OpenType or TrueType fonts. Fonts of one folder are one family.

    Returns
    -------
    dict
        ``images`` uint8 (n, 10, 28, 28), white on black, of n different fonts, and ``train`` bool
        (n,): whether the font is for training. Fonts of one family are similar, so a family is
        never divided.
    """
    images, train, seen = [], [], set()
    for path, content in sorted(fonts):
        drawn = _alphabet(content)
        if drawn is None or drawn.tobytes() in seen:
            continue
        seen.add(drawn.tobytes())
        images.append(drawn)
        family = PurePosixPath(path).parent.name
        train.append(hashlib.sha256(family.encode()).digest()[0] < TRAIN_FAMILIES)
    return {"images": np.stack(images), "train": np.array(train)}


def _alphabet(content: bytes) -> Pixels | None:
    """Draw the letters of a font (10, 28, 28); None when one is missing or two are equal."""
    try:
        font = ImageFont.truetype(io.BytesIO(content), _POINTS)
        missing = _glyph(font, _MISSING)
        glyphs = [_glyph(font, letter) for letter in LETTERS]
    except (OSError, ValueError):
        return None
    if any(glyph.getbbox() is None or glyph == missing for glyph in glyphs):
        return None
    drawn = np.stack([_centred(glyph) for glyph in glyphs])
    return drawn if len({each.tobytes() for each in drawn}) == len(LETTERS) else None


def _glyph(font: ImageFont.FreeTypeFont, letter: str) -> Image.Image:
    mask = font.getmask(letter)
    return Image.frombytes("L", mask.size, bytes(mask))


def _centred(glyph: Image.Image) -> Pixels:
    inked = glyph.crop(glyph.getbbox())
    scale = LONGEST / max(inked.size)
    width, height = (max(1, round(side * scale)) for side in inked.size)
    canvas = Image.new("L", (SIDE, SIDE))
    inked = inked.resize((width, height), Image.Resampling.LANCZOS)
    canvas.paste(inked, ((SIDE - width) // 2, (SIDE - height) // 2))
    return np.asarray(canvas)
