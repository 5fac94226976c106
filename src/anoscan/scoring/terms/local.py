"""Mahalanobis distance of local discriminator features, where they stand out of the image most.

Small defects vanish in any mean over the image. At every place of the feature maps of the three
finest blocks, each at its own resolution, a Gaussian over that place of all normal images says how
usual its features are (PaDiM, Defard et al. 2021, arXiv 2011.08785, with the GAN's own
discriminator). A place that was seen too rarely for a covariance of its own borrows from all
places of its block, so that images that are not aligned lose little.

A block says the mean over the worst hundredth of its places, divided by the square root of the mean
over all: an image that is odd everywhere is the matter of ``density``. The term is the geometric
mean over the blocks.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d

from anoscan.scoring.terms import Evidence, Tensors, Term

BLOCKS = 3  # the finest ones: coarser blocks see most of the image from anywhere
WORST = 0.01  # share of the places that counts
LEAST_SHARED = 0.02  # of the covariance of a place: what it takes from all places in any case
LARGEST = 2**22  # numbers in the covariances of a block; finer maps are averaged down to it


def places(block: Tensor) -> Tensor:
    """Features (n, c, h, w) of a block as float64 vectors of its places, (n, h', w', c)."""
    side = max(1, min(block.shape[-1], int(LARGEST**0.5 / block.shape[1])))
    if side < block.shape[-1]:
        block = adaptive_avg_pool2d(block, side)
    return block.permute(0, 2, 3, 1).double()


def sums(evidence: Evidence) -> Tensors:
    """Count, and for each block the sums of vectors and of outer products at every place."""
    totals = {"count": evidence.x.new_tensor(float(len(evidence.x)), dtype=torch.float64)}
    for i, block in enumerate(evidence.features[:BLOCKS]):
        v = places(block)
        totals[f"sum{i}"] = v.sum(0)
        totals[f"outer{i}"] = torch.einsum("nhwc,nhwd->hwcd", v, v)
    return totals


def fit(total: Tensors) -> Tensors:
    """Mean (h, w, c) and whitening (h, w, c, c) of the places of each block."""
    count, fitted = total["count"], {}
    for i in range(sum(name.startswith("sum") for name in total)):
        mean = total[f"sum{i}"] / count
        covariance = total[f"outer{i}"] / count - mean[..., :, None] * mean[..., None, :]
        fitted[f"mean{i}"] = mean.float()
        fitted[f"whiten{i}"] = whitening(covariance, float(count)).float()
    return fitted


def whitening(covariance: Tensor, count: float) -> Tensor:
    """Inverse Cholesky factors (h, w, c, c), transposed, of covariances shrunk to their mean."""
    channels = covariance.shape[-1]
    shared = covariance.mean((0, 1))
    borrowed = min(1.0, channels / (channels + count) + LEAST_SHARED)
    variance = shared.diagonal().clamp_min(0)
    # A channel that never moved (a dead one) would divide by nothing.
    floor = torch.diag(1e-3 * variance + 1e-4 * variance.mean() + 1e-12)
    mixed = (1 - borrowed) * covariance + borrowed * shared + floor
    eye = torch.eye(channels, dtype=mixed.dtype, device=mixed.device).expand_as(mixed)
    inverse: Tensor = torch.linalg.solve_triangular(torch.linalg.cholesky(mixed), eye, upper=False)
    return inverse.mT


def distances(block: Tensor, mean: Tensor, whiten: Tensor) -> Tensor:
    """Mean squared whitened coordinate at every place of a block (n, c, h, w): (n, h', w')."""
    centred = places(block) - mean.double()
    return torch.einsum("nhwc,hwcd->nhwd", centred, whiten.double()).square().mean(3)


def measure(evidence: Evidence, fitted: Tensors) -> Tensor:
    """How far the worst places stand out, (n,); geometric mean over blocks."""
    logs = []
    for i, block in enumerate(evidence.features[:BLOCKS]):
        odd = distances(block, fitted[f"mean{i}"], fitted[f"whiten{i}"])
        logs.append(standing_out(odd.flatten(1)))
    return torch.stack(logs).mean(0).exp()


def standing_out(odd: Tensor) -> Tensor:
    """Logarithm of how far the worst of squares (n, places) stand out of their image, (n,)."""
    worst = odd.topk(max(1, round(WORST * odd.shape[1]))).values.mean(1)
    return (worst + 1e-12).log() - (odd.mean(1) + 1e-12).log() / 2


ENTRY = Term(
    measure, paper="Defard et al. 2021", sums=sums, fit=fit, narrow=True, needs_latent=False
)
