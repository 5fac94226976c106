"""What the principal components of normal images leave of the pixels, where it stands out most.

Where images show the same thing at the same place, most of a pixel follows from the rest of its
image, and what does not is small: a defect of few pixels that no feature of a network and no mean
shows. The subspace of the largest principal components is found in one pass, from sums that add up
over batches: of the covariance times a random matrix (Nyström's approximation; Halko et al. 2011,
arXiv 0909.4061, section 5.5).

As in ``local``, the term is the mean over the worst hundredth of the places, divided by the square
root of the mean over all.
"""

from __future__ import annotations

import functools
import math

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d

from anoscan.scoring.terms import Evidence, Tensors, Term
from anoscan.scoring.terms.local import standing_out

# Pixels a side from which the term counts. In smaller images a defect covers a part of all there is
# to see, and there the other terms do better.
LEAST_SIDE = 64
SIDE = 64  # pixels: larger images are averaged down to it
COMPONENTS = 256
SKETCH = 2 * COMPONENTS
IMAGES_A_COMPONENT = 4  # of fewer images, more components would know them by heart
SMOOTHED = 1 / 64  # of the side: squares of single pixels are noise
FLOOR = 0.01  # of the mean: pixels that never differ must not decide alone


def sums(evidence: Evidence) -> Tensors:
    """Count, sums and sums of squares of pixels, and the sketch of their covariance."""
    rows = _rows(evidence.x).double()
    return {
        "count": rows.new_tensor(float(len(rows))),
        "sum": rows.sum(0),
        "squares": rows.square().sum(0),
        "sketch": rows.T @ (rows @ _directions(rows.shape[1]).to(rows.device)),
    }


def fit(total: Tensors) -> Tensors:
    """Mean (d,), orthonormal basis (d, k) and expected squared residuals (s, s) of normal images.

    d counts the samples of an image of at most `SIDE` pixels a side.
    """
    count, mean = total["count"], total["sum"] / total["count"]
    directions = _directions(len(mean)).to(mean.device)
    covered = total["sketch"] / count - torch.outer(mean, mean @ directions)
    most = min(COMPONENTS, int(count) // IMAGES_A_COMPONENT)
    basis, variances = _principal(directions, covered, most)
    left = total["squares"] / count - mean.square() - basis.square() @ variances
    side = _side(len(mean))
    expected = left.clamp_min(0).reshape(-1, side, side).mean(0)
    expected = torch.from_numpy(_smooth(expected.cpu().numpy())).to(mean.device)
    expected = expected + FLOOR * expected.mean() + 1e-8
    return {
        "mean": mean.float(),
        "basis": basis.half(),  # most of what a model would weigh, and exact enough
        "expected": expected.float(),
    }


def residual(x: Tensor, fitted: Tensors) -> Tensor:
    """Squares of what the subspace does not explain of images (n, c, s, s): (n, s', s'), float64.

    Mean over channels, smoothed, relative to what is left of training images (of unseen ones it is
    a little more).
    """
    rows = _rows(x) - fitted["mean"]
    basis = fitted["basis"].float()
    # One image at a time: no image's figures may depend on how many are measured with it.
    left = torch.stack([row - basis @ (row @ basis) for row in rows])
    side = len(fitted["expected"])
    squares = left.double().square().reshape(len(x), -1, side, side).mean(1)
    relative = squares / fitted["expected"].double()
    smooth = np.stack([_smooth(one) for one in relative.cpu().numpy()])
    return torch.from_numpy(smooth).to(x.device)


def measure(evidence: Evidence, fitted: Tensors) -> Tensor:
    """How far the worst places stand out, (n,)."""
    return standing_out(residual(evidence.x, fitted).flatten(1)).exp()


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
    variances, rotated = torch.linalg.eigh(factor.T @ factor)
    variances, rotated = variances.flip(0)[:most], rotated.flip(1)[:, :most]
    some = variances > 1e-9 * variances[:1].sum().clamp_min(1e-30)
    variances, rotated = variances[some], rotated[:, some]
    basis: Tensor = factor @ rotated / variances.sqrt()
    return basis, variances


ENTRY = Term(
    measure,
    paper="Halko et al. 2011",
    sums=sums,
    fit=fit,
    needs_latent=False,
    of_patches=False,
    least_side=LEAST_SIDE,
)
