"""Synthetic defects of a known kind, size and place, for a self-test without labels.

And whole images bent out of shape: odd everywhere, defective nowhere.

Strengths are relative to the contrast of the images they are put into, sizes to nothing: a defect
of 8 pixels covers about 8 pixels from end to end, in any image.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage

from anoscan.core.arrays import Floats
from anoscan.images.canvas import BLANK

TRIES = 8  # places, until the defect can be seen
VISIBLE = 0.2  # mean change of what it covers, in standard deviations of all pixels
BENT_BY = 0.05  # of the side: standard deviation of how far bending moves a place
BENT_OVER = 0.12  # of the side: how far places move together

Mask = NDArray[np.bool_]
Pixels = NDArray[np.floating[Any]]


@dataclass(frozen=True)
class Spot:
    """Where a defect goes, and what it may use.

    Parameters
    ----------
    image : ndarray of shape (c, s, s), float32
    donor : ndarray of the same shape
        Another normal image.
    contrast : float
        Standard deviation of the pixels of normal images.
    size : int
        Pixels from end to end.
    row, column : float
        Middle.
    """

    image: Floats
    donor: Floats
    contrast: float
    size: int
    row: float
    column: float

    def away(self) -> tuple[Pixels, Pixels]:
        """Rows and columns of every pixel, from the middle, (s, 1) and (1, s)."""
        side = self.image.shape[-1]
        rows, columns = np.ogrid[:side, :side]
        return rows - self.row, columns - self.column

    def disc(self) -> Pixels:
        """Cover of a disc with an edge a pixel wide, (s, s) in [0, 1]."""
        down, across = self.away()
        cover: Pixels = np.clip(self.size / 2 + 0.5 - np.hypot(down, across), 0, 1)
        return cover


Draw = Callable[[Spot, np.random.Generator], tuple[Pixels, Pixels]]


def defect(
    kind: str,
    image: Floats,
    donor: Floats,
    size: int,
    contrast: float,
    native: int,
    rng: np.random.Generator,
) -> tuple[Floats, Mask] | None:
    """Copy of an image with one defect, and where it is, (s, s); None where it cannot be seen.

    Parameters
    ----------
    kind : str
        Of `KINDS`.
    image, donor : ndarray of shape (c, s, s), float32 in [-1, 1]
    size : int
        Pixels from end to end.
    contrast : float
        Standard deviation of the pixels of normal images.
    native : int
        Side of the images before they were enlarged, where they were: a defect is then enlarged
        with them, and has no finer detail than they.
    """
    side = image.shape[-1]
    low, high = min(float(image.min()), -1.0), max(float(image.max()), 1.0)
    for _ in range(TRIES):
        row, column = rng.uniform(0, side - 1, 2)
        spot = Spot(image, donor, contrast, size, float(row), float(column))
        changed, cover = KINDS[kind](spot, rng)
        change = cover * (changed - image)
        if native < side:
            change = _enlarged(change, native)
        mixed = np.clip(image + change, low, high).astype(np.float32)
        mask = cover > 0.5
        if mask.any() and _change(mixed, image)[mask].mean() > max(VISIBLE * contrast, BLANK):
            return mixed, mask
    return None


def bent(image: Floats, native: int, rng: np.random.Generator) -> Floats:
    """Image (c, s, s) with its shapes bent: every place is moved, near ones alike.

    An elastic deformation (Simard et al. 2003). What is in the image stays as it is at any point;
    how it hangs together does not. `native` is that of `defect`.
    """
    side = image.shape[-1]
    moves = []
    for _ in range(2):
        field = ndimage.gaussian_filter(rng.normal(size=(side, side)), BENT_OVER * side)
        moves.append(field / max(float(field.std()), 1e-12) * BENT_BY * side)
    places = np.mgrid[:side, :side] + np.stack(moves)
    layers = [ndimage.map_coordinates(layer, places, order=1, mode="nearest") for layer in image]
    change = np.stack(layers) - image
    if native < side:
        change = _enlarged(change, native)
    return (image + change).astype(np.float32)


def _enlarged(change: Pixels, native: int) -> Pixels:
    """What a change (c, s, s) is after a detour over a smaller side."""
    side = change.shape[-1]
    small = (native, native)
    layers = [Image.fromarray(layer.astype(np.float32)) for layer in change]
    there = [layer.resize(small, Image.Resampling.BOX) for layer in layers]
    back = [layer.resize((side, side), Image.Resampling.BILINEAR) for layer in there]
    return np.stack([np.asarray(layer) for layer in back])


def _change(mixed: Floats, image: Floats) -> Pixels:
    change: Pixels = np.abs(mixed.astype(np.float64) - image).mean(0)
    return change


def _strength(spot: Spot, rng: np.random.Generator) -> Pixels:
    """Brighter or darker, by one to two standard deviations; a colour in colour images."""
    channels = len(spot.image)
    tint = rng.uniform(0.5, 1, (channels, 1, 1)) if channels > 1 else np.ones((1, 1, 1))
    strength: Pixels = rng.choice([-1, 1]) * rng.uniform(1, 2) * tint * spot.contrast
    return strength


def _cut_paste(spot: Spot, rng: np.random.Generator) -> tuple[Pixels, Pixels]:
    """A rectangle of another image, from another place."""
    shape = spot.size * np.sqrt(rng.uniform(0.5, 1, 2))
    down, across = spot.away()
    cover = (np.abs(down) <= shape[0] / 2) & (np.abs(across) <= shape[1] / 2)
    moved = np.roll(spot.donor, rng.integers(0, spot.donor.shape[-1], 2), (1, 2))
    return moved, cover.astype(np.float64)


def _scratch(spot: Spot, rng: np.random.Generator) -> tuple[Pixels, Pixels]:
    """A straight line, a pixel wide or an eighth of its length."""
    down, across = spot.away()
    angle = rng.uniform(0, math.pi)
    along = down * math.sin(angle) + across * math.cos(angle)
    beside = down * math.cos(angle) - across * math.sin(angle)
    width = max(1.0, spot.size / 8)
    cover = np.clip(width / 2 + 0.5 - np.abs(beside), 0, 1) * (np.abs(along) <= spot.size / 2)
    return spot.image + _strength(spot, rng), cover


def _blob(spot: Spot, rng: np.random.Generator) -> tuple[Pixels, Pixels]:
    """A spot of one grey or colour."""
    usual = spot.image.mean((1, 2), keepdims=True)
    return np.broadcast_to(usual + 1.5 * _strength(spot, rng), spot.image.shape), spot.disc()


def _noise(spot: Spot, rng: np.random.Generator) -> tuple[Pixels, Pixels]:
    """Grain of one standard deviation in a disc."""
    return spot.image + rng.normal(0, spot.contrast, spot.image.shape), spot.disc()


def _blur(spot: Spot, rng: np.random.Generator) -> tuple[Pixels, Pixels]:
    """A disc out of focus."""
    sigma = max(1.0, spot.size / 4)
    return ndimage.gaussian_filter(spot.image, (0, sigma, sigma)), spot.disc()


def _shift(spot: Spot, rng: np.random.Generator) -> tuple[Pixels, Pixels]:
    """A disc brighter or darker; what is in it stays."""
    return spot.image + 0.7 * _strength(spot, rng), spot.disc()


KINDS: dict[str, Draw] = {
    "cut-paste": _cut_paste,
    "scratch": _scratch,
    "blob": _blob,
    "noise": _noise,
    "blur": _blur,
    "shift": _shift,
}
