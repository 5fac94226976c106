"""Mahalanobis distance of the pretrained network's features, over the whole image.

The means of the channels of all maps describe an image, and for all but the coarsest map their
standard deviations too. One Gaussian over these numbers gives the distance (Rippel et al. 2021,
arXiv 2005.14140).
"""

from __future__ import annotations

import torch
from torch import Tensor

from anoscan.scoring.terms import (
    Evidence,
    Forms,
    Tensors,
    Term,
    fit_gaussian,
    gaussian_forms,
    gaussian_sums,
    mahalanobis,
)

SHRINKAGE = 0.02
CHANNELS = 1280  # of a map; a wider one is projected on so many random directions


def pooled(maps: list[Tensor]) -> Tensor:
    """Return means, and spreads of all maps (n, c_i, s_i, s_i) but the last, (n, d), float64."""
    flat = [_narrowed(block).flatten(2).double() for block in maps]
    spreads = [(block.var(2, correction=0) + 1e-8).sqrt() for block in flat[:-1]]
    return torch.cat([block.mean(2) for block in flat] + spreads, 1)


def sums(evidence: Evidence) -> Tensors:
    """Return the Gaussian sums of the pooled features."""
    return gaussian_sums(pooled(evidence.backbone))


def fit(total: Tensors) -> Tensors:
    """Fit the mean and whitening of the pooled features."""
    return fit_gaussian(total, SHRINKAGE)


def forms(evidence: Evidence) -> Forms:
    """Return what the fitted tensors are like."""
    return gaussian_forms(pooled(evidence.backbone).shape[1])


def measure(evidence: Evidence, fitted: Tensors) -> Tensor:
    """Return the mean squared whitened coordinate of the pooled features, (n,)."""
    return mahalanobis(pooled(evidence.backbone), fitted)


def weight(evidence: Evidence) -> Tensor:
    """Return 1 for each image, (n,): no patch shows what this term sees in photographs."""
    return torch.ones(len(evidence.x), dtype=torch.float64, device=evidence.x.device)


def _narrowed(block: Tensor) -> Tensor:
    channels = block.shape[1]
    if channels <= CHANNELS:
        return block
    generator = torch.Generator().manual_seed(0)
    directions = torch.randn(channels, CHANNELS, generator=generator) / CHANNELS**0.5
    return torch.einsum("nchw,cd->ndhw", block, directions.to(block))


ENTRY = Term(
    measure,
    paper="Rippel et al. 2021",
    sums=sums,
    fit=fit,
    forms=forms,
    weight=weight,
    needs_latent=False,
    of_backbone=True,
)
