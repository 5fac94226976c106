"""What pixels say of each other in normal images: the linear subspace that these keep to.

Where images show the same thing at the same place, most of a pixel follows from the rest of its
image, and what does not is small. The subspace of the largest principal components is found in one
pass, from sums that add up over batches: of the covariance times a random matrix (Nyström's
approximation; Halko et al. 2011, arXiv 0909.4061, section 5.5).
"""

from __future__ import annotations

import functools
import math

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d

Tensors = dict[str, Tensor]

SIDE = 64  # pixels: larger images are averaged down to it
COMPONENTS = 256
SKETCH = 2 * COMPONENTS
IMAGES_A_COMPONENT = 4  # of fewer images, more components would know them by heart
SMOOTHED = 1 / 64  # of the side: squares of single pixels are noise
FLOOR = 0.01  # of the mean: pixels that never differ must not decide alone


def sums(x: Tensor) -> Tensors:
    """Sums over images (n, c, s, s), to be added up over batches."""
    rows = _rows(x).double()
    return {
        "pixel_count": rows.new_tensor(float(len(rows))),
        "pixel_sum": rows.sum(0),
        "pixel_squares": rows.square().sum(0),
        "pixel_sketch": rows.T @ (rows @ _directions(rows.shape[1]).to(rows.device)),
    }


def fit(total: Tensors) -> Tensors:
    """Mean (d,), orthonormal basis (d, k) and expected squared residuals (s, s) of normal images.

    d counts the samples of an image of at most `SIDE` pixels a side.
    """
    count, mean = total["pixel_count"], total["pixel_sum"] / total["pixel_count"]
    directions = _directions(len(mean)).to(mean.device)
    covered = total["pixel_sketch"] / count - torch.outer(mean, mean @ directions)
    most = min(COMPONENTS, int(count) // IMAGES_A_COMPONENT)
    basis, variances = _principal(directions, covered, most)
    left = total["pixel_squares"] / count - mean.square() - basis.square() @ variances
    side = _side(len(mean))
    expected = left.clamp_min(0).reshape(-1, side, side).mean(0)
    expected = torch.from_numpy(_smooth(expected.cpu().numpy())).to(mean.device)
    expected = expected + FLOOR * expected.mean() + 1e-8
    return {
        "pixel_mean": mean.float(),
        "pixel_basis": basis.half(),  # most of what a model would weigh, and exact enough
        "pixel_expected": expected.float(),
    }


def residual(x: Tensor, fitted: Tensors) -> Tensor:
    """Squares of what the subspace does not explain of images (n, c, s, s): (n, s', s'), float64.

    Mean over channels, smoothed, relative to what is left of training images (of unseen ones it is
    a little more).
    """
    rows = _rows(x) - fitted["pixel_mean"]
    basis = fitted["pixel_basis"].float()
    # One image at a time: no image's figures may depend on how many are measured with it.
    left = torch.stack([row - basis @ (row @ basis) for row in rows])
    side = len(fitted["pixel_expected"])
    squares = left.double().square().reshape(len(x), -1, side, side).mean(1)
    relative = squares / fitted["pixel_expected"].double()
    smooth = np.stack([_smooth(one) for one in relative.cpu().numpy()])
    return torch.from_numpy(smooth).to(x.device)


def _rows(x: Tensor) -> Tensor:
    """Images (n, c, s, s) as float32 vectors (n, d)."""
    if x.shape[-1] > SIDE:
        x = adaptive_avg_pool2d(x, SIDE)
    return x.float().flatten(1)


def _side(samples: int) -> int:
    """Side of the images, of one or three channels, that have so many samples."""
    side = math.isqrt(samples)
    return side if side**2 == samples else math.isqrt(samples // 3)


def _smooth(place: np.ndarray) -> np.ndarray:
    smooth: np.ndarray = ndimage.gaussian_filter(place, SMOOTHED * len(place), mode="nearest")
    return smooth


@functools.lru_cache(maxsize=2)
def _directions(samples: int) -> Tensor:
    """Random directions (d, l), the same in every process."""
    generator = torch.Generator().manual_seed(0)
    directions = torch.randn(samples, SKETCH, generator=generator, dtype=torch.float64)
    directions /= samples**0.5
    return directions


def _principal(directions: Tensor, covered: Tensor, most: int) -> tuple[Tensor, Tensor]:
    """Basis (d, k) and variances (k,), from a covariance times directions (d, l)."""
    core = directions.T @ covered
    values, vectors = torch.linalg.eigh((core + core.T) / 2)
    kept = values > 1e-7 * values[-1].clamp_min(1e-30)
    factor = covered @ (vectors[:, kept] / values[kept].sqrt())
    variances, turned = torch.linalg.eigh(factor.T @ factor)
    variances, turned = variances.flip(0)[:most], turned.flip(1)[:, :most]
    some = variances > 1e-9 * variances[:1].sum().clamp_min(1e-30)
    variances, turned = variances[some], turned[:, some]
    basis: Tensor = factor @ turned / variances.sqrt()
    return basis, variances
