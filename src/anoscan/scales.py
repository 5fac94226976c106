"""Large images at several scales: measured at each, with one score and one map in the end.

At a coarser scale a tile shows more of an image, and the image is one of a few means of blocks. The
networks learned nothing of it; held-out normals, measured at the same scale, say what is usual.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from anoscan import resampling
from anoscan.architectures import Networks
from anoscan.calibration import tile_moments
from anoscan.errors import InputError
from anoscan.images import Decoded, ImageRule
from anoscan.maps import PIXEL_RATE, Maps
from anoscan.scores import ENCODER, SCALES, Inversion
from anoscan.scoring import OnRows, OnTiles, Tiled, measure_tiled
from anoscan.terms import Tensors
from anoscan.tiles import Floats

LEAST = 1e-6  # that the spread of a map is taken for


@dataclass(frozen=True)
class Coarse:
    """What held-out normals gave at a coarser scale.

    Parameters
    ----------
    step : int
        Pixels along a side that become one; a key of `scores.SCALES`.
    terms : ndarray of shape (n, k), float64
        Raw; see `model.Yardstick`.
    tiles : ndarray of shape (n, 3, k), float64
    peaks : ndarray of shape (n,), float64
        Highest values of their maps, as `like_finest` gives them.
    stretch, shift : float
        Of maps, so that they have the units of the finest scale.
    """

    step: int
    terms: np.ndarray
    tiles: np.ndarray
    peaks: np.ndarray
    stretch: float
    shift: float

    @classmethod
    def fit(cls, step: int, fine: Sequence[Tiled], coarse: Sequence[Tiled]) -> Coarse:
        """From the same images, with maps, at the finest scale and at this one."""
        (middle, level), (own_middle, own_level) = _usual(fine), _usual(coarse)
        stretch = (level - middle) / max(own_level - own_middle, LEAST)
        shift = middle - stretch * own_middle
        peaks = [stretch * image.measured.oddness.max() + shift for image in coarse]
        return cls(
            step,
            np.concatenate([image.measured.terms for image in coarse]),
            np.stack([tile_moments(image.terms) for image in coarse]),
            np.array(peaks, np.float64),
            stretch,
            shift,
        )

    def like_finest(self, rows: Floats) -> Floats:
        """Rows of a map in the units of the finest scale."""
        return rows * np.float32(self.stretch) + np.float32(self.shift)

    def stored(self) -> dict[str, Tensor]:
        """Tensors for `restored`."""
        arrays = {"terms": self.terms, "tiles": self.tiles, "peaks": self.peaks}
        units = {"units": np.array([self.stretch, self.shift])}
        return {name: torch.from_numpy(array) for name, array in (arrays | units).items()}

    @classmethod
    def restored(cls, step: int, tensors: dict[str, Tensor], shape: tuple[int, int]) -> Coarse:
        """From what `stored` gave, of terms of that shape.

        Raises
        ------
        KeyError, ValueError
            When something is missing or does not fit.
        """
        n, k = shape
        terms, tiles, peaks = (tensors[name].numpy() for name in ("terms", "tiles", "peaks"))
        if (terms.shape, tiles.shape, peaks.shape) != ((n, k), (n, 3, k), (n,)):
            raise ValueError(f"the calibration at scale {SCALES[step]} does not fit the terms")
        stretch, shift = (float(value) for value in tensors["units"])
        return cls(step, terms, tiles, peaks, stretch, shift)


def _usual(images: Sequence[Tiled]) -> tuple[float, float]:
    """Median of the pixels of maps, and what a share of `PIXEL_RATE` exceeds: means over images."""
    ranks = (0.5, 1 - PIXEL_RATE)
    middle, level = np.mean([np.quantile(image.measured.oddness, ranks) for image in images], 0)
    return float(middle), float(level)


def coarser(decoded: Decoded, step: int, rule: ImageRule) -> Decoded:
    """The image at a coarser scale.

    Raises
    ------
    InputError
        When a tile is larger than it; the message is the bare reason.
    """
    if min(decoded.canvas.height, decoded.canvas.width) // step < rule.size:
        raise InputError(
            f"is {decoded.width}x{decoded.height} pixels: smaller at scale {SCALES[step]} than "
            f"the model's patches"
        )
    return dataclasses.replace(decoded, canvas=decoded.canvas.coarser(step))


def measure(
    networks: Networks,
    fitted: dict[str, Tensors],
    decoded: Decoded,
    rule: ImageRule,
    device: torch.device,
    how: Inversion = ENCODER,
    *,
    scales: Sequence[Coarse],
    picture: bool,
    maps: Maps | None = None,
    on_rows: OnRows | None = None,
    on_tiles: OnTiles | None = None,
) -> Tiled:
    """Measure a large image at the finest scale and at others; see `scoring.measure_tiled`.

    Terms (1, k * scales) of the image stand beside each other, those of the finest scale first; the
    map is the highest of all at each place. All else is of the finest scale.

    Raises
    ------
    InputError
        See `coarser`.
    """
    others = [
        measure_tiled(
            networks, fitted, coarser(decoded, scale.step, rule), rule, device, how,
            picture=False, maps=maps, on_tiles=on_tiles,
        ).measured
        for scale in scales
    ]  # fmt: skip
    size = (decoded.canvas.height, decoded.canvas.width)
    layers = [(scale, other.oddness[0]) for scale, other in zip(scales, others, strict=True)]

    def over(top: int, rows: Floats) -> Floats:
        for scale, layer in layers:
            part = _part(layer, size, top, top + len(rows))
            rows = np.maximum(rows, scale.like_finest(part))
        return rows

    tiled = measure_tiled(
        networks, fitted, decoded, rule, device, how,
        picture=picture, maps=maps, over=over, on_rows=on_rows, on_tiles=on_tiles,
    )  # fmt: skip
    terms = np.concatenate([tiled.measured.terms, *(other.terms for other in others)], 1)
    return dataclasses.replace(tiled, measured=dataclasses.replace(tiled.measured, terms=terms))


def measured_coarser(
    networks: Networks,
    fitted: dict[str, Tensors],
    decoded: Decoded,
    rule: ImageRule,
    device: torch.device,
    maps: Maps | None,
) -> dict[int, Tiled]:
    """A normal image at all coarser scales that it is large enough for; none without maps."""
    found: dict[int, Tiled] = {}
    for step in SCALES:
        try:
            if step > 1 and maps is not None:
                small = coarser(decoded, step, rule)
                found[step] = measure_tiled(
                    networks, fitted, small, rule, device, picture=False, maps=maps
                )
        except InputError:
            break
    return found


def _part(layer: Floats, size: tuple[int, int], top: int, end: int) -> Floats:
    def read(first: int, last: int) -> Floats:
        return layer[first:last]

    return resampling.part(read, (layer.shape[0], layer.shape[1]), size, top, end)
