"""Lay out one picture for a person: title, views of an image with its regions, and colour bar.

Every picture of a scored image is laid out here, so that all of them look the same.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from anoscan.core.files import printable
from anoscan.report import pictures

NO_RECONSTRUCTION = "no reconstruction: this model has not learned to make one"
_GROUND, _INK, _MUTED, _ALARM = (32, 32, 32), (240, 240, 240), (176, 176, 176), (255, 150, 90)
_PLACARD = (96, 96, 96)
_MARK, _HALO = (0, 235, 255), (0, 0, 0)  # no colour of a map is like cyan
_FULL = 1000  # pixels along the longer side of a figure whose sizes below hold; larger ones grow
_TEXT, _SMALL, _GAP, _BAR = 16, 14, 10, 12  # pixels
_NARROWEST = 400  # pixels: texts need this width
_SMALLEST_BOX = 12  # pixels
_MOST_BOXES = 50
# These are tried, in this order, for names with letters that Pillow's own font lacks.
_FONTS = (
    "DejaVuSans.ttf",
    "NotoSansCJK-Regular.ttc",
    "Arial Unicode.ttf",
    "arial.ttf",
    "msgothic.ttc",
)

Font = ImageFont.FreeTypeFont | ImageFont.ImageFont


class Box(NamedTuple):
    """The box of a region, as shares (0 to 1) of the sides of the upright image.

    `below_level` is that of the region; such a box is dashed.
    """

    left: float
    top: float
    width: float
    height: float
    below_level: bool


class Pane(NamedTuple):
    """One view of an image, what it shows, and the boxes that are drawn on it."""

    picture: Image.Image
    caption: str
    boxes: Sequence[Box] = ()


@dataclass(frozen=True)
class Title:
    """The title of a figure: the name of a file, and what was found, in `alarm` where anomalous."""

    name: str
    facts: str
    alarm: bool


@dataclass(frozen=True)
class ColourBar:
    """What the colours of a figure stand for, from 0 to `brightest` in a unit."""

    brightest: float
    unit: str


def figure(panes: Sequence[Pane], title: Title, bar: ColourBar) -> Image.Image:
    """Lay out views beside each other, under a title and above a colour bar and a legend.

    Texts have a size that can be read where the whole figure is fitted to a screen. A name that is
    too long is cut in the middle.
    """
    high = max(pane.picture.height for pane in panes)
    factor = max(1.0, max(sum(pane.picture.width for pane in panes), high) / _FULL)
    gap, text, small = (round(size * factor) for size in (_GAP, _TEXT, _SMALL))
    line, strip = round(1.45 * small), round(_BAR * factor)
    captions = line if len(panes) > 1 else 0
    columns = [
        max(pane.picture.width, math.ceil(_length(_own_font(small), pane.caption)) * bool(captions))
        for pane in panes
    ]
    width = max(sum(columns) + gap * (len(panes) - 1), round(_NARROWEST * factor))
    marks = _legend([box for pane in panes for box in pane.boxes])
    legend = tuple(row for text in marks for row in _wrapped(text, _own_font(small), width))
    head = gap + round(1.45 * text) + line
    top = head + gap // 2 + captions
    below = top + high + gap
    size = (width + 2 * gap, below + strip + gap // 3 + line * (1 + len(legend)) + gap // 2)
    drawn = Image.new("RGB", size, _GROUND)
    draw = ImageDraw.Draw(drawn)
    _write(draw, (gap, gap), title.name, text, width, _INK)
    facts = _ALARM if title.alarm else _MUTED
    _write(draw, (gap, gap + round(1.45 * text)), title.facts, small, width, facts)
    left = gap
    for pane, column in zip(panes, columns, strict=True):
        if captions:
            _write(draw, (left, top - line), pane.caption, small, column, _MUTED)
        drawn.paste(boxed(pane.picture, pane.boxes, factor), (left, top))
        left += column + gap
    drawn.paste(_foot((width, size[1] - below), strip, gap // 3, small, bar, legend), (gap, below))
    return drawn


@functools.lru_cache(64)  # most figures of a run have the same
def _foot(
    size: tuple[int, int], strip: int, gap: int, small: int, bar: ColourBar, legend: tuple[str, ...]
) -> Image.Image:
    """Draw the colour bar, `strip` pixels high, and the legend below it."""
    drawn = Image.new("RGB", size, _GROUND)
    draw = ImageDraw.Draw(drawn)
    colours = pictures.coloured(np.linspace(0, 1, 256)[None], 1.0)
    drawn.paste(colours.resize((size[0], strip), Image.Resampling.BILINEAR), (0, 0))
    words = ("0", bar.unit, f"{bar.brightest:.3g}+")
    _ruler(draw, (0, strip + gap), size[0], words, small)
    for number, text in enumerate(legend, start=1):
        place = (0, strip + gap + round(1.45 * small) * number)
        _write(draw, place, text, small, size[0], _MARK)
    return drawn


def boxed(picture: Image.Image, boxes: Sequence[Box], factor: float = 1.0) -> Image.Image:
    """Draw at most `_MOST_BOXES` boxes, the first on top, on a copy of a picture.

    A box goes around its region, and a small one grows until it can be seen. Lines are `factor`
    times as thick as in a small picture.
    """
    drawn = picture.copy()
    draw = ImageDraw.Draw(drawn)
    stroke = max(2, round(2 * factor))
    for box in reversed(boxes[:_MOST_BOXES]):
        edges = []
        for start, extent, side in (
            (box.left, box.width, picture.width),
            (box.top, box.height, picture.height),
        ):
            centre, length = (start + extent / 2) * side, extent * side + 2 * stroke
            reach = max(length, _SMALLEST_BOX * factor) / 2
            edges.append((max(0, round(centre - reach)), min(side - 1, round(centre + reach))))
        _outline(draw, edges[0], edges[1], stroke, dashed=box.below_level)
    return drawn


def placard(size: tuple[int, int], words: str) -> Image.Image:
    """Draw words on grey, as large as fits into a picture of this size."""
    drawn = Image.new("RGB", size, _PLACARD)
    draw = ImageDraw.Draw(drawn)
    for height in range(max(8, round(min(size) / 9)), 7, -1):
        font = _own_font(height)
        lines = _wrapped(words, font, size[0] - height)
        tall = round(1.4 * height * len(lines))
        if tall <= size[1] and all(_length(font, line) <= size[0] for line in lines):
            for number, line in enumerate(lines):
                left = round((size[0] - _length(font, line)) / 2)
                draw.text((left, (size[1] - tall) // 2 + round(1.4 * height * number)), line,
                          fill=_INK, font=font)  # fmt: skip
            break
    return drawn


def _legend(boxes: Sequence[Box]) -> tuple[str, ...]:
    marked = {box.below_level for box in boxes}
    words = {
        False: "solid box: above the level of normal images",
        True: "dashed box: the hottest place, below the level of normal images",
    }
    return tuple(text for below, text in words.items() if below in marked)


def _outline(
    draw: ImageDraw.ImageDraw,
    across: tuple[int, int],
    down: tuple[int, int],
    stroke: int,
    *,
    dashed: bool,
) -> None:
    """Draw a rectangle in a colour between black lines, or in dashes of the colour and black."""
    (left, right), (top, bottom) = across, down
    draw.rectangle((left - 1, top - 1, right + 1, bottom + 1), outline=_HALO, width=stroke + 2)
    if not dashed:
        draw.rectangle((left, top, right, bottom), outline=_MARK, width=stroke)
        return
    dash = 4 * stroke
    for start in range(left, right + 1, 2 * dash):
        end = min(start + dash, right)
        draw.rectangle((start, top, end, min(top + stroke - 1, bottom)), fill=_MARK)
        draw.rectangle((start, max(bottom - stroke + 1, top), end, bottom), fill=_MARK)
    for start in range(top, bottom + 1, 2 * dash):
        end = min(start + dash, bottom)
        draw.rectangle((left, start, min(left + stroke - 1, right), end), fill=_MARK)
        draw.rectangle((max(right - stroke + 1, left), start, right, end), fill=_MARK)


def _ruler(
    draw: ImageDraw.ImageDraw,
    corner: tuple[int, int],
    width: int,
    words: tuple[str, str, str],
    size: int,
) -> None:
    """Write words at the left, in the middle and at the right of a line."""
    font, (left, top) = _own_font(size), corner
    for share, text, ink in zip((0.0, 0.5, 1.0), words, (_INK, _MUTED, _INK), strict=True):
        place = left + round((width - _length(font, text)) * share)
        draw.text((place, top), text, fill=ink, font=font)


# --- texts --------------------------------------------------------------------------------------


def _write(
    draw: ImageDraw.ImageDraw,
    corner: tuple[int, int],
    text: str,
    size: int,
    width: int,
    ink: tuple[int, int, int],
) -> None:
    """Write one line that is at most `width` pixels wide."""
    words, font = legible(text, size)
    draw.text(corner, shortened(words, font, width), fill=ink, font=font)


def legible(text: str, size: int) -> tuple[str, Font]:
    """Return a text as it can be drawn, and the font for it.

    Letters that no font of this machine has are written as escapes, and so are control characters.
    """
    plain = printable(text)
    fonts: list[Font] = [_own_font(size)]
    if not all(_has(fonts[0], letter) for letter in plain):
        fonts += [one for name in _FONTS if (one := _installed(name, size)) is not None]
    font = next((one for one in fonts if all(_has(one, letter) for letter in plain)), fonts[0])
    return "".join(
        letter if _has(font, letter) else letter.encode("unicode_escape").decode()
        for letter in plain
    ), font


def shortened(text: str, font: Font, width: int) -> str:
    """Return a text that is at most `width` pixels wide; a longer one is cut in the middle."""
    if _length(font, text) <= width:
        return text
    for kept in range(len(text) - 1, 0, -1):
        cut = f"{text[: (kept + 1) // 2]}...{text[len(text) - kept // 2 :]}"
        if _length(font, cut) <= width:
            return cut
    return ""


def _wrapped(text: str, font: Font, width: int) -> list[str]:
    lines: list[str] = []
    for word in text.split():
        if lines and _length(font, f"{lines[-1]} {word}") <= width:
            lines[-1] = f"{lines[-1]} {word}"
        else:
            lines.append(word)
    return lines


def _length(font: Font, text: str) -> float:
    return float(font.getlength(text))


@functools.lru_cache(64)
def _own_font(size: int) -> Font:
    try:
        return ImageFont.load_default(size)
    except (ImportError, OSError):  # this Pillow was built without FreeType
        return ImageFont.load_default()


@functools.lru_cache(64)
def _installed(name: str, size: int) -> ImageFont.FreeTypeFont | None:
    try:
        return ImageFont.truetype(name, size)
    except (ImportError, OSError):
        return None


@functools.lru_cache(4096)
def _has(font: Font, letter: str) -> bool:
    """Return whether a font has a letter: it draws all that it lacks alike."""
    if not isinstance(font, ImageFont.FreeTypeFont):
        return letter.isascii()
    found, missing = font.getmask(letter), font.getmask("\uffff")
    return found.size != missing.size or bytes(found) != bytes(missing)
