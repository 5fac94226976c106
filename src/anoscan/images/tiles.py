"""Large images in tiles: cutting them, and blending what was made of the tiles.

Numpy only. Memory is bounded by design: an image stays in the samples it was stored in, tiles are
cut a few at a time, and rows of the blended result are handed on as soon as no tile is to come.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from anoscan.core.arrays import Floats
from anoscan.images.canvas import Canvas

WORST = 4  # tiles: with half a side between them, a place in the image lies in four
FINENESS = 8  # cells along a tile, in a picture of one number a tile
LARGEST_MAP = 4096  # cells along a map that is kept whole
LARGEST_PICTURE = 2048  # pixels along a picture for people


@dataclass(frozen=True)
class Grid:
    """Square tiles that cover an image, neighbours at most half a side apart.

    `tops` and `lefts` are the rows and columns of their corners. Tiles are numbered in reading
    order.
    """

    height: int
    width: int
    side: int
    tops: tuple[int, ...]
    lefts: tuple[int, ...]

    @classmethod
    def over(cls, height: int, width: int, side: int) -> Grid:
        """Grid of an image.

        Raises
        ------
        ValueError
            When a tile is larger than the image.
        """
        return cls(height, width, side, _starts(height, side), _starts(width, side))

    def __len__(self) -> int:
        return len(self.tops) * len(self.lefts)

    def cut(self, canvas: Canvas, most: int) -> Iterator[Floats]:
        """All tiles in reading order, at most `most` at a time, (n, channels, side, side)."""
        corners = [(top, left) for top in self.tops for left in self.lefts]
        for start in range(0, len(corners), most):
            some = corners[start : start + most]
            yield np.stack([canvas.part(*corner, self.side, self.side) for corner in some])

    def spread(self, values: NDArray[np.floating[Any]]) -> Floats:
        """Picture of one number a tile (n,), in reading order, each blended over its tile.

        Returns
        -------
        ndarray of shape (about 8 height / side, about 8 width / side), float32
            Coarse, since nothing in it is finer than half a tile.
        """
        cell = max(1, self.side // FINENESS)
        height, width, side = (-(-n // cell) for n in (self.height, self.width, self.side))
        tops = [min(top // cell, height - side) for top in self.tops[:-1]] + [height - side]
        lefts = [min(left // cell, width - side) for left in self.lefts[:-1]] + [width - side]
        ramp = _ramp(side)
        share, total = np.outer(ramp, ramp), np.zeros((height, width))
        rows = values.reshape(len(tops), len(lefts))
        for top, row in zip(tops, rows, strict=True):
            for left, value in zip(lefts, row, strict=True):
                total[top : top + side, left : left + side] += value * share
        weight = np.outer(_coverage(height, tops, ramp), _coverage(width, lefts, ramp))
        return (total / weight).astype(np.float32)


def _ramp(side: int) -> NDArray[np.float64]:
    """Weights across a tile: squared sines that all but vanish at its edges."""
    weights: NDArray[np.float64] = np.sin(np.pi * (np.arange(side) + 0.5) / side) ** 2
    return weights


def _starts(length: int, side: int) -> tuple[int, ...]:
    """Evenly spread starts of intervals of length `side`, from 0 to `length` - `side`."""
    if not 2 <= side <= length:
        raise ValueError(f"tiles of {side} do not fit into {length}")
    gaps = -(-(length - side) // (side // 2))
    return tuple((length - side) * place // max(gaps, 1) for place in range(gaps + 1))


class Blender:
    """Makes one picture of tiles that overlap.

    Each pixel is the mean of the tiles over it, weighted by squared sines that vanish at a tile's
    edge, so that no edge shows. Weights are a product of one by row and one by column: no map of
    them is needed.

    Parameters
    ----------
    grid : Grid
    channels : int
        Of the tiles; any number.
    """

    def __init__(self, grid: Grid, channels: int) -> None:
        self.grid = grid
        ramp = _ramp(grid.side)
        self._weight = np.outer(ramp, ramp).astype(np.float32)
        self._down = _coverage(grid.height, grid.tops, ramp)
        self._across = _coverage(grid.width, grid.lefts, ramp)
        self._band = np.zeros((channels, grid.side, grid.width), np.float32)
        self._row = self._column = 0

    def add(self, tiles: Floats) -> list[tuple[int, Floats]]:
        """Take the next tiles (n, channels, side, side), in reading order.

        Returns
        -------
        list of (top, rows (channels, height, width))
            Finished rows, each exactly once, from the top down.
        """
        finished: list[tuple[int, Floats]] = []
        for tile in tiles:
            left = self.grid.lefts[self._column]
            self._band[:, :, left : left + self.grid.side] += tile * self._weight
            self._column += 1
            if self._column == len(self.grid.lefts):
                finished.append(self._finish_row())
        return finished

    def _finish_row(self) -> tuple[int, Floats]:
        tops = self.grid.tops
        top = tops[self._row]
        self._row, self._column = self._row + 1, 0
        end = tops[self._row] if self._row < len(tops) else self.grid.height
        weight = np.outer(self._down[top:end], self._across).astype(np.float32)
        rows = self._band[:, : end - top] / weight
        self._band = np.roll(self._band, top - end, axis=1)
        self._band[:, self.grid.side - (end - top) :] = 0
        return top, rows


def block_side(height: int, width: int, most: int | None = None) -> int:
    """Pixels that a cell of a `Reduced` picture stands for, along one side."""
    return max(1, -(-max(height, width) // (most or LARGEST_MAP)))


class Reduced:
    """A picture that comes in rows, as its square blocks: their highest, or their means.

    Parameters
    ----------
    channels, height, width : int
        Of the picture.
    most : int
        Cells along a side; a picture no larger is kept as it is. By default `LARGEST_MAP`.
    mean : bool
        Whether blocks are averaged.

    Attributes
    ----------
    block : int
        Side of a block.
    """

    def __init__(
        self, channels: int, height: int, width: int, most: int | None = None, *, mean: bool = False
    ) -> None:
        self.block = block_side(height, width, most)
        shape = (channels, -(-height // self.block), -(-width // self.block))
        self._gather = np.add if mean else np.maximum
        self._cells: Floats = np.full(shape, 0 if mean else -np.inf, np.float32)
        self._size = (height, width)

    def add(self, top: int, rows: Floats) -> None:
        """Take rows (channels, h, width) of the picture that begin at `top`."""
        lefts = np.arange(0, rows.shape[2], self.block)
        columns = self._gather.reduceat(rows, lefts, axis=2)
        cells = (top + np.arange(rows.shape[1])) // self.block
        self._gather.at(self._cells.swapaxes(0, 1), cells, columns.swapaxes(0, 1))

    @property
    def picture(self) -> Floats:
        """What came so far, (channels, height / block, width / block) rounded up, float32."""
        if self._gather is np.maximum:
            return self._cells
        down, across = (
            np.minimum(self.block, side - np.arange(0, side, self.block)) for side in self._size
        )
        means: Floats = np.divide(self._cells, np.outer(down, across), dtype=np.float32)
        return means


def _coverage(length: int, starts: Sequence[int], ramp: NDArray[np.float64]) -> NDArray[Any]:
    total = np.zeros(length)
    for start in starts:
        total[start : start + len(ramp)] += ramp
    return total


def worst(values: NDArray[np.floating[Any]]) -> NDArray[np.float64]:
    """What tiles (n, k) say of their image (k,): the mean of the `WORST` highest of each column.

    A defect that one tile sees whole is seen by up to four; the highest alone would be the noise
    of the many.
    """
    mean: NDArray[np.float64] = np.sort(values, axis=0)[-WORST:].mean(0, dtype=np.float64)
    return mean
