"""Measure large images tile by tile, and pass on the rows of their maps as they are finished."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
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
    """Yield what the networks see of an image: arrays (n, c, s, s), float32, n at most `CHUNK`.

    This is the image itself, or overlapping tiles in reading order for a model of patches.
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
        The measurement of the whole image. `terms` (1, k) come from its most anomalous tiles
        (`images.tiles.worst`), and `weights` (1, k) are the mean over the tiles. `residual` and
        `anomaly_map` (1, h, w) and `x_hat` (1, c, h, w) are blended and reduced
        (`images.tiles.Reduced`). They are empty where they are not wanted.
    terms : ndarray of shape (t, k), float64
        The terms of each tile, in reading order.
    error : float
        The mean squared residual of all tiles.
    level : float
        The 99.9 % quantile of the residual of the pixels, as a mean over batches of tiles.
    """

    measured: Measured
    terms: np.ndarray
    error: float
    level: float


def measure_tiled(
    measurer: Measurer,
    decoded: Decoded,
    how: Inversion = ENCODER,
    *,
    picture: bool,
    mapped: bool,
    only: Collection[str] | None = None,
    on_rows: OnRows | None = None,
    on_tiles: OnTiles | None = None,
) -> Tiled:
    """Measure a large image in tiles, a fixed number at a time.

    Tiles of different images are never measured together, so no image depends on another.

    Parameters
    ----------
    measurer : Measurer
    decoded : Decoded
    how : Inversion
    picture : bool
        Whether residual and reconstruction are wanted; they are empty otherwise.
    mapped : bool
        Whether the anomaly map is wanted; the measurer must have fitted maps then.
    only : collection of str, optional
        The terms that are measured; by default all.
    on_rows : callable, optional
        Takes the number `top` and the finished rows (h, width) of the map from there, top down.
    on_tiles : callable, optional
        Takes the number of tiles that are measured, and the number of all tiles.
    """
    rule, width = measurer.rule, len(measurer.fitted)
    grid = _grid(decoded, rule)
    mosaic = _Mosaic(grid, decoded.canvas, rule.channels, picture, mapped, on_rows)
    # These are filled in place. Arrays kept from each batch would lie between blocks of memory that
    # torch frees, and so keep that memory in use.
    terms, weights = np.empty((2, len(grid), width))
    squares, levels, end = np.empty(len(grid)), [], 0
    for tiles in views(decoded, rule):
        x = torch.from_numpy(tiles).to(measurer.device)
        measured = measurer.measure(x, how, mapped=mapped, only=only)
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
    return Tiled(whole, terms, float(squares.mean()), float(np.mean(levels)))


class _Mosaic:
    """The pictures of a large image, blended from those of its tiles; unwanted ones stay empty."""

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
        """Add the next tiles, in reading order."""
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
