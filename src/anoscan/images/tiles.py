"""Cut large images into tiles, and blend the results of the tiles into one picture.

Memory is bounded: an image stays in its stored samples, and tiles are cut a few at a time. Rows of
the blended picture are returned as soon as no later tile covers them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from anoscan.core.arrays import Floats
from anoscan.images.canvas import Canvas

WORST = 4  # tiles whose mean counts: tiles are half a side apart, so a place lies in four
LARGEST_MAP = 4096  # cells along a side of an anomaly map, at most
LARGEST_PICTURE = 2048  # pixels along a side of a picture to look at, at most


@dataclass(frozen=True)
class Grid:
    """Square tiles that cover an image, in reading order; neighbours are at most half a side apart.

    `height` and `width` of the image and `side` of a tile are in pixels. `tops` and `lefts` are the
    rows and columns of the tiles' top left corners, rising.
    """

    height: int
    width: int
    side: int
    tops: tuple[int, ...]
    lefts: tuple[int, ...]

    @classmethod
    def over(cls, height: int, width: int, side: int) -> Grid:
        """Make the grid of an image of `height` x `width` pixels.

        Raises
        ------
        ValueError
            When a tile is larger than the image, or its side is less than 2.
        """
        return cls(height, width, side, _starts(height, side), _starts(width, side))

    def __len__(self) -> int:
        return len(self.tops) * len(self.lefts)

    def cut(self, canvas: Canvas, most: int) -> Iterator[Floats]:
        """Yield tiles in reading order, (n, channels, side, side) float32 with n <= `most`."""
        corners = [(top, left) for top in self.tops for left in self.lefts]
        for start in range(0, len(corners), most):
            some = corners[start : start + most]
            yield np.stack([canvas.part(*corner, self.side, self.side) for corner in some])


def _ramp(side: int) -> NDArray[np.float64]:
    """Weights (side,) across a tile: squared sines, which are nearly 0 at its edges."""
    weights: NDArray[np.float64] = np.sin(np.pi * (np.arange(side) + 0.5) / side) ** 2
    return weights


def _starts(length: int, side: int) -> tuple[int, ...]:
    """Evenly spread starts, from 0 to `length - side`, of intervals of length `side`."""
    if not 2 <= side <= length:
        raise ValueError(f"tiles of {side} do not fit into {length}")
    gaps = -(-(length - side) // (side // 2))
    return tuple((length - side) * place // max(gaps, 1) for place in range(gaps + 1))


class Blender:
    """Blends overlapping tiles of any number of channels into one picture.

    Each pixel is the weighted mean of the tiles that cover it. The weights are squared sines, which
    vanish at the edge of a tile, so that no edge shows. A weight is the product of one number for
    the row and one for the column, so no map of weights is kept.
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
        """Add the next tiles (n, channels, side, side), in reading order; return finished rows.

        Rows (channels, height, width) come after the row at which they begin. Each row comes
        exactly once, from the top down.
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
    """Side in pixels of the blocks of a `Reduced` picture, so that it has at most `most` a side."""
    return max(1, -(-max(height, width) // (most or LARGEST_MAP)))


class Reduced:
    """Reduces a picture that comes in rows to one cell for each square block of pixels.

    A cell is the highest value of its block, or with `mean` the mean. There are at most `most`
    cells along a side (by default `LARGEST_MAP`), and a picture that is no larger is kept as it is.
    The attribute `block` is the side of a block in pixels.
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
        """Add rows (channels, h, width) of the picture that begin at row `top`."""
        lefts = np.arange(0, rows.shape[2], self.block)
        columns = self._gather.reduceat(rows, lefts, axis=2)
        cells = (top + np.arange(rows.shape[1])) // self.block
        self._gather.at(self._cells.swapaxes(0, 1), cells, columns.swapaxes(0, 1))

    @property
    def picture(self) -> Floats:
        """The reduced picture so far, (channels, height / block, width / block) float32.

        Its sides are rounded up.
        """
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
    """Terms of an image (k,) from those of its tiles (n, k): means of the `WORST` highest values.

    A defect that one tile sees whole is seen by up to four tiles. The highest value alone would be
    the noise of many tiles.
    """
    mean: NDArray[np.float64] = np.sort(values, axis=0)[-WORST:].mean(0, dtype=np.float64)
    return mean
