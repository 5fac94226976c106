"""The grid of the layers of anomaly maps: halved, enlarged and smoothed pictures."""

from __future__ import annotations

import math

import torch
from scipy import ndimage
from torch import Tensor

from anoscan.core.arrays import Floats

HALVED = 64  # pixels a side; from here on layers have half the resolution of the image
COARSENESS = 1.5  # a standard deviation of the smoothing covers at least so many cells of its grid
TRUNCATED = 3.0  # standard deviations after which a blur ends


def grid_side(side: int) -> int:
    """Return the side of the grid of images with `side` pixels a side."""
    return side // 2 if side >= HALVED and side % 2 == 0 else side


def on_grid(pictures: Tensor) -> Tensor:
    """Return pictures (n, s, s) on the grid, as means of 2x2 pixels where it is halved."""
    if grid_side(pictures.shape[-1]) == pictures.shape[-1]:
        return pictures
    return torch.nn.functional.avg_pool2d(pictures[:, None], 2)[:, 0]


def enlarged(layer: Tensor, side: int) -> Floats:
    """Enlarge a layer (h, h) to (side, side), float32; the last cells may reach over the edge."""
    cells = layer.shape[-1]
    reach = side if cells > side else cells * 2 ** math.ceil(math.log2(side / cells))
    grown = torch.nn.functional.interpolate(
        layer.float()[None, None], size=(reach, reach), mode="bilinear", align_corners=False
    )
    numbers: Floats = grown[0, 0, :side, :side].cpu().numpy()
    return numbers


def blurred(pictures: Floats, sigma: float) -> Floats:
    """Blur the last two axes by a Gaussian with a standard deviation of `sigma` cells."""
    axes = (pictures.ndim - 2, pictures.ndim - 1)
    smooth: Floats = ndimage.gaussian_filter(
        pictures, sigma, axes=axes, mode="nearest", truncate=TRUNCATED
    )
    return smooth


def smoothed(layers: Floats, share: float) -> Floats:
    """Smooth layers (m, s, s) by a Gaussian of `share` of the side, on a coarse grid for speed."""
    side = layers.shape[-1]
    sigma, step = share * side, 1
    while sigma >= 2 * COARSENESS * step and side % (2 * step) == 0:
        step *= 2
    cells = layers.reshape(len(layers), side // step, step, side // step, step).mean((2, 4))
    smooth = blurred(cells, sigma / step)
    if step == 1:
        return smooth
    grown = torch.nn.functional.interpolate(
        torch.from_numpy(smooth)[None], size=(side, side), mode="bilinear", align_corners=False
    )
    numbers: Floats = grown[0].numpy()
    return numbers
