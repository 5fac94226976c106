"""Size, kind, brightness and sharpness of an image, compared with those of normal images.

Examples of a mismatch are a photograph among X-rays, a picture of another camera, and a blurred
copy. The model has seen no such image, so it is reported beside the score. A defect may also change
the brightness or the sharpness of its image. So where there is an anomalous region, nothing is
said against the score.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, cached_property

import numpy as np
from PIL import Image, ImageChops

from anoscan.images.canvas import Canvas

LINES = 64  # rows of an image that are measured, and columns, at most
_LONGEST, _STRETCH = 2**16, 2**10  # pixels of a line that are measured, and at one place of it
MOST = 4096  # normal images whose values are kept, at most
_THIN = 64  # pixels a side in which colour is searched for
_TILES, _HOLE = 8, 3  # tiles along a side of an image, and along a side of a part of it
_REACH = 3  # interquartile ranges beyond the quartiles: Tukey's outer fence
_SIDE = 1.1  # factor by which a side may leave the range of the sides of normal images
_MEASURED = ("brightness", "sharpness")
_LEAST = {"brightness": 0.01, "sharpness": 0.05}  # lower limits of interquartile ranges


@dataclass(frozen=True)
class Look:
    """Size, kind, brightness and sharpness of one image.

    Parameters
    ----------
    width, height : int
        Size of the upright image in pixels.
    kind : str
        Depth and colour, such as "8-bit grey".
    brightness : float
        Mean of the image as the networks see it, from 0 (black) to 1 (white).
    sharpness : float
        Logarithm of the mean squared difference of neighbouring pixels, relative to the variance.
    parts : dict of str to (float, float)
        For "brightness" and "sharpness": how much the value falls, and rises, at most, when a
        rectangle of three eighths of the sides is left out.
    """

    width: int
    height: int
    kind: str
    brightness: float
    sharpness: float
    parts: dict[str, tuple[float, float]]

    @classmethod
    def of(cls, kind: str, canvas: Canvas, size: tuple[int, int]) -> Look:
        """Measure the canvas of an image; `size` is its upright (width, height) in pixels."""
        values = _measured(_sums(canvas))
        parts = {
            name: (float(column[0] - column.min()), float(column.max() - column[0]))
            for name, column in zip(_MEASURED, values.T, strict=True)
        }
        brightness, sharpness = map(float, values[0])
        return cls(*size, kind, brightness, sharpness, parts)


def _sums(canvas: Canvas) -> np.ndarray:
    """Sums that `_measured` needs of every tile and channel, (quantities, c, rows, columns)."""
    across, down = _lines(canvas)
    steps = (np.square(np.diff(across, axis=2)), np.square(np.diff(down, axis=1)))
    numbers = (np.ones_like(steps[0]), np.ones_like(steps[1]), np.ones_like(across))
    shape = [min(_TILES, *(x.shape[axis] for x in steps)) for axis in (1, 2)]
    return np.stack([_in_tiles(x, shape) for x in (*steps, across, across**2, *numbers)])


def _in_tiles(values: np.ndarray, shape: Sequence[int]) -> np.ndarray:
    """Sums of values (c, h, w) over tiles, (c, rows, columns) as in `shape`."""
    for axis, tiles in enumerate(shape, 1):
        starts = np.arange(tiles) * values.shape[axis] // tiles
        values = np.add.reduceat(values, starts, axis=axis)
    return values


def _measured(sums: np.ndarray) -> np.ndarray:
    """Brightness and sharpness (masks, 2): first of the whole image, then without each part."""
    masks = _masks(sums.shape[2], sums.shape[3])
    across, down, first, second, n_across, n_down, n = np.einsum("qcij,mij->qmc", sums, masks)
    steps = (across.sum(1) / n_across.sum(1) + down.sum(1) / n_down.sum(1)) / 2
    variance = np.maximum(second / n - np.square(first / n), 0).mean(1)
    brightness = (first.sum(1) / n.sum(1) + 1) / 2
    return np.stack([brightness, np.log((steps + 1e-8) / (variance + 1e-4))], axis=1)


@cache
def _masks(rows: int, columns: int) -> np.ndarray:
    """Weights of tiles (masks, rows, columns): first all 1, then 0 in each rectangular part."""
    height, width = rows * _HOLE // _TILES, columns * _HOLE // _TILES
    masks = [np.ones((rows, columns))]
    for top in range(rows - height + 1):
        for left in range(columns - width + 1):
            mask = np.ones((rows, columns))
            mask[top : top + height, left : left + width] = 0
            masks.append(mask)
    return np.stack(masks)


def _lines(canvas: Canvas) -> tuple[np.ndarray, np.ndarray]:
    """Some rows (c, n, w) and columns (c, h, n) of an image, evenly spread, float64."""
    rows = np.linspace(0, canvas.height - 1, min(canvas.height, LINES)).round().astype(int)
    columns = np.linspace(0, canvas.width - 1, min(canvas.width, LINES)).round().astype(int)
    along, down_along = _stretches(canvas.width), _stretches(canvas.height)
    parts = (canvas.samples[rows][:, along], canvas.samples[down_along][:, columns])
    across, down = (Canvas(part, canvas.channels, canvas.window).whole() for part in parts)
    return across.astype(np.float64), down.astype(np.float64)


def _stretches(length: int) -> slice | np.ndarray:
    """Places along a line: all, or of a very long one stretches of neighbours from all over."""
    if length <= _LONGEST:
        return slice(None)
    starts = np.linspace(0, length - _STRETCH, _LONGEST // _STRETCH).astype(int)
    return (starts[:, None] + np.arange(_STRETCH)).ravel()


def kind(image: Image.Image) -> str:
    """Kind of an 8-bit image; colour is searched for in at most 64x64 of its pixels."""
    side = min(_THIN, image.width), min(_THIN, image.height)
    thin = image.resize(side, Image.Resampling.NEAREST).convert("RGB")
    red, green, blue = thin.split()
    differences = (ImageChops.difference(red, green), ImageChops.difference(green, blue))
    return "8-bit colour" if any(d.getbbox() for d in differences) else "8-bit grey"


@dataclass(frozen=True)
class Looks:
    """Sizes, kinds, brightness and sharpness of normal images.

    `values` (n, 8), float64, are width, height, brightness, sharpness, and `Look.parts` of the last
    two. `kinds` are all that occur, sorted.
    """

    values: np.ndarray
    kinds: tuple[str, ...]

    @classmethod
    def of(cls, looks: Sequence[Look]) -> Looks:
        """Collect the values of images; of many images, at most `MOST`, evenly spread."""
        step = max(1, -(-len(looks) // MOST))
        values = [
            (
                x.width,
                x.height,
                x.brightness,
                x.sharpness,
                *x.parts["brightness"],
                *x.parts["sharpness"],
            )
            for x in looks[::step]
        ]
        return cls(np.array(values, dtype=np.float64), tuple(sorted({x.kind for x in looks})))

    def reasons(self, look: Look, *, located: bool = False) -> tuple[str, ...] | None:
        """Return sentences that say how an image differs from all normal images; None without any.

        `located` says whether the image is anomalous and has an anomalous region, which may be the
        reason for another brightness or sharpness.

        A number differs if it is outside the range of the normal images and beyond Tukey's outer
        fence: three interquartile ranges from the quartiles. The fence is needed because the range
        of few images is narrow. A difference that one part of an image causes is an anomaly, which
        is left to the score.
        """
        found = []
        (low_w, low_h), (high_w, high_h) = self._sizes
        if not (
            low_w / _SIDE <= look.width <= high_w * _SIDE
            and low_h / _SIDE <= look.height <= high_h * _SIDE
        ):
            usual = f"{low_w:.0f}x{low_h:.0f}"
            if (low_w, low_h) != (high_w, high_h):
                usual = f"{usual} to {high_w:.0f}x{high_h:.0f}"
            found.append(f"size: {look.width}x{look.height}, normal images are {usual}")
        found += self._kind(look.kind)
        for name in _MEASURED:
            low, high = self._fences[name]
            value = getattr(look, name)
            if not low <= value <= high and not self._due_to_a_part(look, name):
                found.append(_beyond(name, value, low, high, located=located))
        return tuple(found) or None

    def _due_to_a_part(self, look: Look, name: str) -> bool:
        """Whether one part of an image explains why a value lies outside the fences.

        Without the part the value must be inside. The part must also matter more than parts of
        normal images do. Else blurred images pass: without the object that all normal images show,
        they are like sharp ones.
        """
        value, (less, more) = getattr(look, name), look.parts[name]
        (low, high), (usually_less, usually_more) = self._fences[name], self._usual_parts[name]
        if value > high:
            return less > usually_less and value - less <= high
        return more > usually_more and value + more >= low

    def _kind(self, kind: str) -> list[str]:
        if kind in self.kinds:
            return []
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
    def _sizes(self) -> np.ndarray:
        sizes = self.values[:, :2]
        return np.stack([sizes.min(0), sizes.max(0)])

    @cached_property
    def _fences(self) -> dict[str, tuple[float, float]]:
        columns = zip(_MEASURED, self.values[:, 2:4].T, strict=True)
        return {name: _fence(values, _LEAST[name]) for name, values in columns}

    @cached_property
    def _usual_parts(self) -> dict[str, tuple[float, float]]:
        most = [_fence(values, 0)[1] for values in self.values[:, 4:].T]
        return {name: (most[2 * i], most[2 * i + 1]) for i, name in enumerate(_MEASURED)}


def _fence(values: np.ndarray, least: float) -> tuple[float, float]:
    low, high = np.quantile(values, (0.25, 0.75))
    reach = _REACH * max(high - low, least)
    return float(min(values.min(), low - reach)), float(max(values.max(), high + reach))


def _beyond(name: str, value: float, low: float, high: float, *, located: bool) -> str:
    if name == "brightness":
        found = f"{value:.2f} of white, normal images have {low:.2f} to {high:.2f}"
        guess = ""
    elif value < low:
        found, guess = "less than any normal image has", ", as if blurred or empty"
    else:
        found, guess = "more than any normal image has", ", as if noisy or of another scale"
    # An anomalous region is a better guess than another camera, and needs no other.
    return f"{name}: {found}{'; its anomalous region may be why' if located else guess}"
