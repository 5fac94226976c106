"""Residual of the pixels from the principal components of normal images, at its worst places.

Where images show the same thing at the same place, most of a pixel follows from the rest of its
image. So the residual shows a defect of few pixels, which no feature of a network and no mean
shows. The largest principal components are found in one pass, from the covariance times a random
matrix (Nyström's approximation; Halko et al. 2011, arXiv 0909.4061, section 5.5). The worst places
are compared with all places as in ``local``.
"""

from __future__ import annotations

import functools
import math

import torch
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d

from anoscan.core.tensors import Like
from anoscan.scoring.grid import blurring
from anoscan.scoring.terms import Evidence, Forms, Tensors, Term
from anoscan.scoring.terms.local import standing_out

# Pixels a side from which the term counts. In smaller images a defect covers a large part of the
# image, and there the other terms do better.
LEAST_SIDE = 64
SIDE = 64  # pixels a side; larger images are averaged down to it
COMPONENTS = 256
SKETCH = 2 * COMPONENTS
IMAGES_A_COMPONENT = 4  # with fewer images a component, PCA would learn the images by heart
SMOOTHED = 1 / 64  # standard deviation, in sides: squares of single pixels are noise
FLOOR = 0.01  # share of the mean: pixels that never differ must not decide alone
LEAST = 1e-8  # keeps a divisor above zero


def sums(evidence: Evidence) -> Tensors:
    """Return the sums over images of d samples each, float64.

    Beside ``count`` there are ``channels``, the sum of their numbers of channels, and ``sum`` and
    ``squares`` (d,) of the samples. ``sketch`` (d, l) is the sum of outer products times the random
    directions.
    """
    rows = _rows(evidence.x).double()
    return {
        "count": rows.new_tensor(float(len(rows))),
        "channels": rows.new_tensor(float(len(rows) * evidence.x.shape[1])),
        "sum": rows.sum(0),
        "squares": rows.square().sum(0),
        "sketch": rows.T @ (rows @ _directions(rows.shape[1]).to(rows.device)),
    }


def fit(total: Tensors) -> Tensors:
    """Fit the principal subspace and the expected residuals of normal images.

    Returns
    -------
    dict of tensors
        ``mean`` (d,), float32, the orthonormal ``basis`` (d, k), float16, and ``expected`` (s, s),
        float32, the expected squared residuals. An image of at most `SIDE` pixels a side has d
        samples.
    """
    count, mean = total["count"], total["sum"] / total["count"]
    directions = _directions(len(mean)).to(mean.device)
    covered = total["sketch"] / count - torch.outer(mean, mean @ directions)
    most = min(COMPONENTS, int(count) // IMAGES_A_COMPONENT)
    basis, variances = _principal(directions, covered, most)
    left = total["squares"] / count - mean.square() - basis.square() @ variances
    side = math.isqrt(len(mean) // round(float(total["channels"] / count)))
    expected = left.clamp_min(0).reshape(-1, side, side).mean(0)
    expected = _smooth(expected)
    expected = expected + FLOOR * expected.mean() + LEAST
    return {
        "mean": mean.float(),
        "basis": basis.half(),  # exact enough, and half of what would be the largest tensor
        "expected": expected.float(),
    }


def forms(evidence: Evidence) -> Forms:
    """Return what the fitted tensors are like."""
    d = _rows(evidence.x).shape[1]
    side = min(evidence.x.shape[-1], SIDE)
    return {
        "mean": Like((d,)),
        "basis": Like((d, "components of the subspace?"), torch.float16),
        "expected": Like((side, side), low=LEAST / 2),
    }


def residual(evidence: Evidence, fitted: Tensors) -> Tensor:
    """Return the squared residual of the images from the subspace: (n, s', s'), float64.

    It is the mean over channels, relative to that of training images, and smoothed. Normal images
    that were not trained on have a little more than training images.
    """
    side = len(fitted["expected"])

    def compute() -> Tensor:
        rows, basis = _rows(evidence.x).double() - fitted["mean"].double(), fitted["basis"].double()
        left = rows - (rows @ basis) @ basis.T
        squares = left.square().reshape(rows.shape[0], -1, side, side).mean(1)
        return _smooth(squares / fitted["expected"].double())

    return evidence.once(("subspace", id(fitted["basis"])), compute)


def measure(evidence: Evidence, fitted: Tensors) -> Tensor:
    """Return how far the worst places exceed the others, (n,)."""
    return standing_out(residual(evidence, fitted).flatten(1)).exp()


def _rows(x: Tensor) -> Tensor:
    """Return images (n, c, s, s) as float32 vectors (n, d), of at most `SIDE` pixels a side."""
    if x.shape[-1] > SIDE:
        x = adaptive_avg_pool2d(x, SIDE)
    return x.float().flatten(1)


def _smooth(places: Tensor) -> Tensor:
    """Smooth pictures (..., s, s)."""
    side = places.shape[-1]
    return blurring(side, SMOOTHED * side, truncated=4.0)(places)


@functools.lru_cache(maxsize=2)
def _directions(samples: int) -> Tensor:
    """Return random directions (d, l), float64, that are the same in every process."""
    generator = torch.Generator().manual_seed(0)
    directions = torch.randn(samples, SKETCH, generator=generator, dtype=torch.float64)
    directions /= samples**0.5
    return directions


def _principal(directions: Tensor, covered: Tensor, most: int) -> tuple[Tensor, Tensor]:
    """Return components (d, k) and variances (k,), given a covariance times `directions` (d, l)."""
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
    forms=forms,
    needs_latent=False,
    of_patches=False,
    least_side=LEAST_SIDE,
)
