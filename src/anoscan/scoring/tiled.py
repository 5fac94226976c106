"""Large images measured tile by tile; finished rows of their pictures are handed on."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch

from anoscan.core.arrays import Floats
from anoscan.images.canvas import Canvas
from anoscan.images.decode import Decoded, ImageRule
from anoscan.images.tiles import LARGEST_PICTURE, Blender, Grid, Reduced, worst
from anoscan.scoring.choices import ENCODER, Inversion
from anoscan.scoring.measure import CHUNK, Measured, Measurer

OnRows = Callable[[int, Floats], None]
OnTiles = Callable[[int, int], None]


def views(decoded: Decoded, rule: ImageRule) -> Iterator[np.ndarray]:
    """What the networks are given of an image, (n, c, s, s), at most `CHUNK` at a time.

    The image itself; with patches, overlapping tiles in reading order.
    """
    if rule.patch is None:
        yield decoded.pixels[None]
    else:
        yield from _grid(decoded, rule).cut(decoded.canvas, CHUNK)


def _grid(decoded: Decoded, rule: ImageRule) -> Grid:
    return Grid.over(decoded.canvas.height, decoded.canvas.width, rule.size)


@dataclass(frozen=True)
class Tiled:
    """One large image, measured tile by tile.

    Parameters
    ----------
    measured : Measured
        Of the image: terms (1, k), those of its oddest tiles (`tiles.worst`); x_hat (1, c, h, w),
        residual (1, h, w) and oddness (1, h, w), blended and `tiles.Reduced`, or empty; trust
        (1, k), the tiles' mean.
    terms : ndarray of shape (t, k), float64
        Of each tile, in reading order.
    grid : Grid
    error : float
        Mean squared residual of all tiles.
    level : float
        Residual that the brightest thousandth of the pixels reaches.
    """

    measured: Measured
    terms: np.ndarray
    grid: Grid
    error: float
    level: float


def measure_tiled(
    measurer: Measurer,
    decoded: Decoded,
    how: Inversion = ENCODER,
    *,
    picture: bool,
    mapped: bool,
    on_rows: OnRows | None = None,
    on_tiles: OnTiles | None = None,
) -> Tiled:
    """Measure a large image in tiles, a fixed number at a time, never beside those of another.

    Parameters
    ----------
    picture : bool
        Whether residual and reconstruction are wanted; they are empty otherwise.
    mapped : bool
        Whether the anomaly map is wanted; the measurer must have fitted maps then.
    on_rows : callable, optional
        Called with (top, rows (h, width)) of the anomaly map, from the top down.
    on_tiles : callable, optional
        Called with how many tiles are measured, and how many there are.
    """
    rule, width = measurer.rule, len(measurer.fitted)
    grid = _grid(decoded, rule)
    mosaic = _Mosaic(grid, decoded.canvas, rule.channels, picture, mapped, on_rows)
    # Filled in place: what torch allocated would be kept, between all that it lets go.
    terms, weights = np.empty((2, len(grid), width))
    squares, levels, end = np.empty(len(grid)), [], 0
    for tiles in views(decoded, rule):
        x = torch.from_numpy(tiles).to(measurer.device)
        measured = measurer.measure(x, how, mapped=mapped)
        start, end = end, end + len(tiles)
        terms[start:end], weights[start:end] = measured.terms, measured.weights
        squares[start:end] = np.square(tiles - measured.x_hat).mean((1, 2, 3))
        levels.append(np.quantile(measured.residual, 0.999))
        mosaic.add(measured)
        if on_tiles is not None:
            on_tiles(end, len(grid))
    pictures = mosaic.x_hat.picture[None], mosaic.residual.picture
    whole = Measured(
        worst(terms)[None], *pictures, weights.mean(0)[None], mosaic.anomaly_map.picture
    )
    return Tiled(whole, terms, grid, float(squares.mean()), float(np.mean(levels)))


class _Mosaic:
    """Pictures of a large image, made of those of its tiles; empty where they are not wanted."""

    def __init__(
        self,
        grid: Grid,
        canvas: Canvas,
        channels: int,
        picture: bool,
        mapped: bool,
        on_rows: OnRows | None,
    ) -> None:
        self._canvas, self._picture, self._mapped = canvas, picture, mapped
        self._on_rows = on_rows
        drawn = (1 + channels) * picture
        self._blender = Blender(grid, drawn + mapped) if drawn + mapped else None
        size = (canvas.height, canvas.width)
        shown, charted = size if picture else (0, 0), size if mapped else (0, 0)
        self.x_hat = Reduced(channels, *shown, LARGEST_PICTURE, mean=True)
        self.residual = Reduced(1, *shown, LARGEST_PICTURE)
        self.anomaly_map = Reduced(1, *charted)

    def add(self, measured: Measured) -> None:
        """Take the next tiles."""
        if self._blender is None:
            return
        layers = [measured.residual[:, None], measured.x_hat] * self._picture
        layers += [measured.anomaly_map[:, None]] * self._mapped
        for top, rows in self._blender.add(np.concatenate(layers, 1)):
            if self._picture:
                self.residual.add(top, rows[:1])
                self.x_hat.add(top, rows[1 : len(rows) - self._mapped])
            if self._mapped:
                self._chart(top, rows[-1])

    def _chart(self, top: int, rows: Floats) -> None:
        counted = self._canvas.counted_rows(top, rows)
        self.anomaly_map.add(top, counted[None])
        if self._on_rows is not None:
            self._on_rows(top, counted)
