"""Mahalanobis distance of local discriminator features, at the places where it is highest.

Small defects vanish in any mean over the image. So every place of the feature maps of the three
finest blocks, each at its own resolution, has a Gaussian. It is fitted to that place of all normal
images, and yields the distance of the features there (PaDiM, Defard et al. 2021, arXiv 2011.08785,
with the GAN's own discriminator). Where there are few images, the covariance of a place is mixed
with that of all places of its block. So images that are not aligned lose little.

The value of a block is the mean over the worst hundredth of its places, divided by the square root
of the mean over all places. The division is there because an image that is anomalous everywhere is
left to ``density``. The term is the geometric mean over the blocks.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d

from anoscan.scoring.terms import Evidence, Tensors, Term

BLOCKS = 3  # the finest ones: a place of a coarser block sees most of the image
WORST = 0.01  # share of the places that counts
LEAST_SHARED = 0.02  # least share of all places in the covariance of a place
LARGEST = 2**22  # numbers in the covariances of a block; finer maps are averaged down to it


def places(block: Tensor) -> Tensor:
    """Return the features (n, c, h, w) of a block as float64 vectors of places, (n, h', w', c).

    Blocks are averaged down until their covariances have at most about `LARGEST` numbers.
    """
    side = max(1, min(block.shape[-1], int(LARGEST**0.5 / block.shape[1])))
    if side < block.shape[-1]:
        block = adaptive_avg_pool2d(block, side)
    return block.permute(0, 2, 3, 1).double()


def sums(evidence: Evidence) -> Tensors:
    """Return the count, and for each block the sums of vectors and outer products at each place."""
    totals = {"count": evidence.x.new_tensor(float(len(evidence.x)), dtype=torch.float64)}
    for i, block in enumerate(evidence.features[:BLOCKS]):
        v = places(block)
        totals[f"sum{i}"] = v.sum(0)
        totals[f"outer{i}"] = torch.einsum("nhwc,nhwd->hwcd", v, v)
    return totals


def fit(total: Tensors) -> Tensors:
    """Fit the mean (h, w, c) and whitening (h, w, c, c) of the places of each block."""
    count, fitted = total["count"], {}
    for i in range(sum(name.startswith("sum") for name in total)):
        mean = total[f"sum{i}"] / count
        covariance = total[f"outer{i}"] / count - mean[..., :, None] * mean[..., None, :]
        fitted[f"mean{i}"] = mean.float()
        fitted[f"whiten{i}"] = whitening(covariance, float(count)).float()
    return fitted


def whitening(covariance: Tensor, count: float) -> Tensor:
    """Return the whitening matrices (h, w, c, c) of covariances of the same shape.

    Each covariance is mixed with the mean over all places. The fewer images there are, the larger
    is the share of this mean. The result is the transposed inverse of the Cholesky factor.

    Parameters
    ----------
    covariance : Tensor of shape (h, w, c, c), float64
        The covariance of each place.
    count : float
        The number of vectors that each covariance was estimated from.
    """
    channels = covariance.shape[-1]
    shared = covariance.mean((0, 1))
    borrowed = min(1.0, channels / (channels + count) + LEAST_SHARED)
    variance = shared.diagonal().clamp_min(0)
    # The added constants keep the covariance of a constant (dead) channel above zero.
    floor = torch.diag(1e-3 * variance + 1e-4 * variance.mean() + 1e-12)
    mixed = (1 - borrowed) * covariance + borrowed * shared + floor
    eye = torch.eye(channels, dtype=mixed.dtype, device=mixed.device).expand_as(mixed)
    inverse: Tensor = torch.linalg.solve_triangular(torch.linalg.cholesky(mixed), eye, upper=False)
    return inverse.mT


def distances(block: Tensor, mean: Tensor, whiten: Tensor) -> Tensor:
    """Return the mean squared whitened coordinate at every place of a block (n, c, h, w).

    The result has the shape (n, h', w').
    """
    centred = places(block) - mean.double()
    return torch.einsum("nhwc,hwcd->nhwd", centred, whiten.double()).square().mean(3)


def measure(evidence: Evidence, fitted: Tensors) -> Tensor:
    """Return how far the worst places exceed the others, (n,), as a geometric mean over blocks."""
    logs = []
    for i, block in enumerate(evidence.features[:BLOCKS]):
        odd = distances(block, fitted[f"mean{i}"], fitted[f"whiten{i}"])
        logs.append(standing_out(odd.flatten(1)))
    return torch.stack(logs).mean(0).exp()


def standing_out(odd: Tensor) -> Tensor:
    """Return how far the highest squared distances of each image exceed the others, (n,).

    It is the logarithm of the mean over the worst hundredth of the places, divided by the square
    root of the mean over all places.

    Parameters
    ----------
    odd : Tensor of shape (n, places), >= 0
        The squared distance at each place.
    """
    worst = odd.topk(max(1, round(WORST * odd.shape[1]))).values.mean(1)
    return (worst + 1e-12).log() - (odd.mean(1) + 1e-12).log() / 2


ENTRY = Term(
    measure, paper="Defard et al. 2021", sums=sums, fit=fit, narrow=True, needs_latent=False
)
