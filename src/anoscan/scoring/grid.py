"""The grid of the layers of anomaly maps, and the linear filters of pictures.

A filter is a matrix that is applied to the rows and to the columns of many pictures at once. So
blurring and enlarging cost two products of matrices, and a chain of filters is a single one.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from anoscan.core.tracing import recording

HALVED = 64  # pixels a side; from here on layers have half the resolution of the image
COARSENESS = 1.5  # a standard deviation of the smoothing covers at least so many cells of its grid
TRUNCATED = 3.0  # standard deviations after which a blur ends
BLOCK = 32  # rows of a large filter that are applied together
_DENSE = 96  # cells a side; the matrix of a filter of smaller pictures is used as a whole
_KEPT = 128  # filters that are kept, at most


@dataclass(frozen=True, eq=False)
class Filter:
    """A filter of the rows and columns of square pictures.

    Parameters
    ----------
    matrix : Tensor of shape (g, s), float64
        Row i says how cell i of the result is made of the s cells of a picture.
    bands : tuple of (slice, slice)
        Blocks of rows, and the columns outside of which they are zero.
    """

    matrix: Tensor
    bands: tuple[tuple[slice, slice], ...]

    @classmethod
    def of(cls, matrix: Tensor) -> Filter:
        """Make a filter; the matrix of a large one is almost empty and is applied in bands."""
        step = matrix.shape[0] if matrix.shape[1] <= _DENSE else BLOCK
        bands = []
        for start in range(0, len(matrix), step):
            columns = matrix[start : start + step].abs().sum(0).nonzero()
            seen = slice(int(columns.min()), int(columns.max()) + 1)
            bands.append((slice(start, start + step), seen))
        return cls(matrix, tuple(bands))

    def after(self, other: Filter) -> Filter:
        """Return the filter that applies `other`, and then this one."""
        return Filter.of(self.matrix @ other.matrix)

    def __call__(self, pictures: Tensor) -> Tensor:
        """Filter pictures (..., s, s); the result (..., g, g) has their dtype and device."""
        matrix = self._like(pictures.dtype, pictures.device)
        if len(self.bands) == 1 or recording():
            return matrix @ (pictures @ matrix.T)
        *many, side = pictures.shape[:-1]
        across = pictures.new_empty((*many, side, len(matrix)))
        for rows, seen in self.bands:
            across[..., rows] = pictures[..., seen] @ matrix[rows, seen].T
        down = pictures.new_empty((*many, len(matrix), len(matrix)))
        for rows, seen in self.bands:
            down[..., rows, :] = matrix[rows, seen] @ across[..., seen, :]
        return down

    @functools.lru_cache(_KEPT)  # noqa: B019 - filters are few, and kept for good
    def _like(self, dtype: torch.dtype, device: torch.device) -> Tensor:
        return self.matrix.to(device, dtype)


def grid_side(side: int) -> int:
    """Return the side of the grid of images with `side` pixels a side."""
    return side // 2 if side >= HALVED and side % 2 == 0 else side


@functools.lru_cache(_KEPT)
def to_grid(side: int) -> Filter:
    """Return the filter of pictures to their grid: means of 2x2 pixels where it is halved."""
    return _means(side, side // grid_side(side))


@functools.lru_cache(_KEPT)
def blurring(side: int, sigma: float, truncated: float = TRUNCATED) -> Filter:
    """Return the filter (side, side) of a Gaussian with a standard deviation of `sigma` cells.

    It ends after `truncated` standard deviations. Beyond the edge, the outermost cells go on.
    """
    reach = round(truncated * sigma)
    steps = torch.arange(-reach, reach + 1)
    weights = torch.exp(-(steps.double() ** 2) / (2 * sigma**2))
    seen = (torch.arange(side)[:, None] + steps).clamp(0, side - 1)
    matrix = torch.zeros(side, side, dtype=torch.float64)
    return Filter.of(matrix.scatter_add_(1, seen, (weights / weights.sum()).expand(side, -1)))


@functools.lru_cache(_KEPT)
def enlarging(cells: int, side: int) -> Filter:
    """Return the filter (side, cells) that enlarges pictures by interpolation.

    The last cells may reach over the edge.
    """
    reach = side if cells > side else cells * 2 ** math.ceil(math.log2(side / cells))
    eye = torch.eye(cells, dtype=torch.float64)[None]
    return Filter.of(interpolate(eye, size=reach, mode="linear", align_corners=False)[0].T[:side])


@functools.lru_cache(_KEPT)
def smoothing(cells: int, side: int, share: float) -> Filter:
    """Return the filter (side, cells) that enlarges and then smooths pictures.

    The standard deviation of the smoothing is `share` of the side. A wide Gaussian smooths on a
    coarser grid.
    """
    sigma, step = share * side, 1
    while sigma >= 2 * COARSENESS * step and side % (2 * step) == 0:
        step *= 2
    smooth = blurring(side // step, sigma / step).after(_means(side, step))
    if step > 1:
        smooth = enlarging(side // step, side).after(smooth)
    return smooth if cells == side else smooth.after(enlarging(cells, side))


def _means(side: int, step: int) -> Filter:
    """Return the filter of means over squares of `step` cells a side."""
    eye = torch.eye(side // step, dtype=torch.float64)
    return Filter.of(eye.repeat_interleave(step, 1) / step)
