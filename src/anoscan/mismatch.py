"""What an image is like apart from its content, and whether any normal image is like that.

A photograph among X-rays, a picture of another camera, a blurred copy: their scores say little,
and calling them defects would be wrong. So they are named beside their score.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from PIL import Image, ImageChops

from anoscan.tiles import Canvas

LINES = 64  # rows and columns of an image that are looked at
MOST = 4096  # normal images that are kept
_THIN = 64  # pixels a side that are asked for colour
_REACH = 3  # interquartile ranges beyond the quartiles: Tukey's outer fence
_SIDE = 1.1  # of the smallest and the largest side
_LEAST = {"brightness": 0.01, "sharpness": 0.05}  # interquartile ranges are taken for no less


@dataclass(frozen=True)
class Look:
    """An image apart from its content.

    Parameters
    ----------
    width, height : int
        Pixels, upright.
    kind : str
        Depth and colour, such as "8-bit grey".
    brightness : float
        Mean, from 0 (black) to 1 (white), as the networks see it.
    sharpness : float
        Logarithm of the squared difference of neighbouring pixels, relative to the variance.
    """

    width: int
    height: int
    kind: str
    brightness: float
    sharpness: float

    @classmethod
    def of(cls, kind: str, canvas: Canvas, size: tuple[int, int]) -> Look:
        """Look of an image of that kind, as it will be seen, and its upright (width, height)."""
        across, down = _lines(canvas)
        steps = (np.square(np.diff(across, axis=2)).mean(), np.square(np.diff(down, axis=1)).mean())
        variance = across.var((1, 2)).mean()
        sharpness = np.log((np.mean(steps) + 1e-8) / (variance + 1e-4))
        brightness = (across.mean() + 1) / 2
        return cls(*size, kind, float(brightness), float(sharpness))


def _lines(canvas: Canvas) -> tuple[np.ndarray, np.ndarray]:
    """Some rows (c, n, w) and columns (c, h, n), evenly spread, float64."""
    rows = np.linspace(0, canvas.height - 1, min(canvas.height, LINES)).round().astype(int)
    columns = np.linspace(0, canvas.width - 1, min(canvas.width, LINES)).round().astype(int)
    parts = (canvas.samples[rows], canvas.samples[:, columns])
    across, down = (Canvas(part, canvas.channels, canvas.window).whole() for part in parts)
    return across.astype(np.float64), down.astype(np.float64)


def kind(image: Image.Image) -> str:
    """Kind of an image of 8 bits; colour is looked for in a few thousand pixels."""
    side = min(_THIN, image.width), min(_THIN, image.height)
    thin = image.resize(side, Image.Resampling.NEAREST).convert("RGB")
    red, green, blue = thin.split()
    differences = (ImageChops.difference(red, green), ImageChops.difference(green, blue))
    return "8-bit colour" if any(d.getbbox() for d in differences) else "8-bit grey"


@dataclass(frozen=True)
class Looks:
    """Looks of normal images.

    Parameters
    ----------
    values : ndarray of shape (n, 4), float64
        Width, height, brightness and sharpness.
    kinds : tuple of str
        All that there were.
    """

    values: np.ndarray
    kinds: tuple[str, ...]

    @classmethod
    def of(cls, looks: Sequence[Look]) -> Looks:
        """Looks of images, at most `MOST` of them, evenly spread."""
        step = max(1, -(-len(looks) // MOST))
        values = [(x.width, x.height, x.brightness, x.sharpness) for x in looks[::step]]
        return cls(np.array(values, dtype=np.float64), tuple(sorted({x.kind for x in looks})))

    def reasons(self, look: Look) -> tuple[str, ...] | None:
        """What sets an image apart from all normal ones; None when nothing does.

        A number does that lies outside the range of the normal images and beyond Tukey's outer
        fence too (three interquartile ranges from the quartiles): few images have a narrow range.
        """
        found = []
        sizes = self.values[:, :2]
        (low_w, low_h), (high_w, high_h) = sizes.min(0), sizes.max(0)
        if not (
            low_w / _SIDE <= look.width <= high_w * _SIDE
            and low_h / _SIDE <= look.height <= high_h * _SIDE
        ):
            usual = f"{low_w:.0f}x{low_h:.0f}"
            if (low_w, low_h) != (high_w, high_h):
                usual = f"{usual} to {high_w:.0f}x{high_h:.0f}"
            found.append(f"size: {look.width}x{look.height}, normal images are {usual}")
        found += self._kind(look.kind)
        for name, value in (("brightness", look.brightness), ("sharpness", look.sharpness)):
            low, high = self._fences[name]
            if not low <= value <= high:
                found.append(_beyond(name, value, low, high))
        return tuple(found) or None

    def _kind(self, kind: str) -> list[str]:
        depth, _, colour = kind.partition(" ")
        depths = {known.partition(" ")[0] for known in self.kinds}
        coloured = {known.endswith("colour") for known in self.kinds}
        found = []
        if depth not in depths:
            found.append(f"bit depth: {depth}, normal images have {' or '.join(sorted(depths))}")
        if (colour == "colour") not in coloured:
            is_colour = colour == "colour"
            found.append(
                "channels: in colour, normal images are grey"
                if is_colour
                else "channels: grey, normal images are in colour"
            )
        return found

    @cached_property
    def _fences(self) -> dict[str, tuple[float, float]]:
        columns = {"brightness": self.values[:, 2], "sharpness": self.values[:, 3]}
        return {name: _fence(values, _LEAST[name]) for name, values in columns.items()}


def _fence(values: np.ndarray, least: float) -> tuple[float, float]:
    low, high = np.quantile(values, (0.25, 0.75))
    reach = _REACH * max(high - low, least)
    return float(min(values.min(), low - reach)), float(max(values.max(), high + reach))


def _beyond(name: str, value: float, low: float, high: float) -> str:
    if name == "brightness":
        return f"brightness: {value:.2f} of white, normal images have {low:.2f} to {high:.2f}"
    if value < low:
        return "sharpness: less than any normal image has, as if blurred or empty"
    return "sharpness: more than any normal image has, as if noisy or of another scale"
