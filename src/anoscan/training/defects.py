"""Synthetic defects of a known kind, size and place, for a self-test without labels.

The strength of a defect is relative to the contrast of normal images. Its size is in pixels from
end to end, in any image. Images that are bent as a whole are anomalous everywhere instead.
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

TRIES = 8  # random places that are tried until the defect is visible
VISIBLE = 0.2  # least mean change of the pixels it covers, in standard deviations of all pixels
BENT_BY = 0.05  # standard deviation of how far bending moves a place, in shares of the side
BENT_OVER = 0.12  # standard deviation of the Gaussian that smooths the moves, in shares of the side

Mask = NDArray[np.bool_]
Pixels = NDArray[np.floating[Any]]


@dataclass(frozen=True)
class Spot:
    """The place of a defect, and what it is made from.

    Parameters
    ----------
    image, donor : ndarray of shape (c, s, s), float32
        Normal image that gets the defect, and another one from which parts may be taken.
    contrast : float
        Standard deviation of the pixels of normal images.
    size : int
        Size of the defect from end to end, in pixels.
    row, column : float
        Middle of the defect, in pixels.
    """

    image: Floats
    donor: Floats
    contrast: float
    size: int
    row: float
    column: float

    def away(self) -> tuple[Pixels, Pixels]:
        """Return how far each row (s, 1) and each column (1, s) is from the middle, in pixels."""
        side = self.image.shape[-1]
        rows, columns = np.ogrid[:side, :side]
        return rows - self.row, columns - self.column

    def disc(self) -> Pixels:
        """Return how much a disc covers each pixel, (s, s) in [0, 1]; its edge is a pixel wide."""
        down, across = self.away()
        cover: Pixels = np.clip(self.size / 2 + 0.5 - np.hypot(down, across), 0, 1)
        return cover


# Returns a changed image (c, s, s) and how much of each pixel the defect covers, (s, s) in [0, 1].
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
    """Put one defect at a random place into a copy of an image.

    Parameters
    ----------
    kind : str
        A key of `KINDS`.
    image, donor, size, contrast
        As for `Spot`; pixels are in [-1, 1].
    native : int
        Side of what the networks see, in pixels of the image files. Where it is less than `s`,
        images were enlarged, and a defect gets no finer detail than they have.
    rng : numpy.random.Generator

    Returns
    -------
    (ndarray of shape (c, s, s), float32, and ndarray of shape (s, s), bool) or None
        The changed image, and a mask that is True where the defect is. None when the defect was not
        visible at any of `TRIES` places.
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
    """Bend an image (c, s, s) as a whole: every place moves, and neighbours move together.

    This is an elastic deformation (Simard et al. 2003): textures and brightness stay as they are,
    but shapes change. `native` has the same meaning as in `defect`.
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
    """Shrink a change (c, s, s) to a side of `native` pixels and enlarge it again to `s`."""
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
    """Return a change of brightness (c, 1, 1), up or down by one to two standard deviations.

    In colour images each channel changes by a random half to all of that.
    """
    channels = len(spot.image)
    tint = rng.uniform(0.5, 1, (channels, 1, 1)) if channels > 1 else np.ones((1, 1, 1))
    strength: Pixels = rng.choice([-1, 1]) * rng.uniform(1, 2) * tint * spot.contrast
    return strength


def _cut_paste(spot: Spot, rng: np.random.Generator) -> tuple[Pixels, Pixels]:
    """Paste a rectangle of another image, from another place."""
    shape = spot.size * np.sqrt(rng.uniform(0.5, 1, 2))
    down, across = spot.away()
    cover = (np.abs(down) <= shape[0] / 2) & (np.abs(across) <= shape[1] / 2)
    moved = np.roll(spot.donor, rng.integers(0, spot.donor.shape[-1], 2), (1, 2))
    return moved, cover.astype(np.float64)


def _scratch(spot: Spot, rng: np.random.Generator) -> tuple[Pixels, Pixels]:
    """Draw a straight line, as wide as an eighth of its length and at least a pixel."""
    down, across = spot.away()
    angle = rng.uniform(0, math.pi)
    along = down * math.sin(angle) + across * math.cos(angle)
    beside = down * math.cos(angle) - across * math.sin(angle)
    width = max(1.0, spot.size / 8)
    cover = np.clip(width / 2 + 0.5 - np.abs(beside), 0, 1) * (np.abs(along) <= spot.size / 2)
    return spot.image + _strength(spot, rng), cover


def _blob(spot: Spot, rng: np.random.Generator) -> tuple[Pixels, Pixels]:
    """Fill a disc with one grey or colour."""
    usual = spot.image.mean((1, 2), keepdims=True)
    return np.broadcast_to(usual + 1.5 * _strength(spot, rng), spot.image.shape), spot.disc()


def _noise(spot: Spot, rng: np.random.Generator) -> tuple[Pixels, Pixels]:
    """Add white noise to a disc; its standard deviation is that of normal pixels."""
    return spot.image + rng.normal(0, spot.contrast, spot.image.shape), spot.disc()


def _blur(spot: Spot, rng: np.random.Generator) -> tuple[Pixels, Pixels]:
    """Blur a disc."""
    sigma = max(1.0, spot.size / 4)
    return ndimage.gaussian_filter(spot.image, (0, sigma, sigma)), spot.disc()


def _shift(spot: Spot, rng: np.random.Generator) -> tuple[Pixels, Pixels]:
    """Make a disc brighter or darker; its structure stays as it is."""
    return spot.image + 0.7 * _strength(spot, rng), spot.disc()


KINDS: dict[str, Draw] = {
    "cut-paste": _cut_paste,
    "scratch": _scratch,
    "blob": _blob,
    "noise": _noise,
    "blur": _blur,
    "shift": _shift,
}
