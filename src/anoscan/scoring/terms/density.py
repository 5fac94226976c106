"""Mahalanobis distance of the image's discriminator features from those of normal images.

The mean, standard deviation and maximum of every channel of every block describe an image. The
maximum keeps small details, which vanish in a mean. One Gaussian over all these numbers gives the
distance (Lee et al. 2018, arXiv 1807.03888, eq. 2, with the GAN's own discriminator).
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


def pooled(features: list[Tensor]) -> Tensor:
    """Return mean, spread and maximum of each channel of all blocks (n, 3 * sum of c_i), float64.

    A block with a single place, (n, c_i, 1, 1), gives only its c_i values.
    """
    flat = [block.flatten(2).double() for block in features]
    means = [block.mean(2) for block in flat]
    flat = [block for block in flat if block.shape[2] > 1]  # one place is its own mean and maximum
    spreads = [(block.var(2, correction=0) + 1e-8).sqrt() for block in flat]
    peaks = [block.amax(2) for block in flat]
    return torch.cat(means + spreads + peaks, 1)


def sums(evidence: Evidence) -> Tensors:
    """Return the Gaussian sums of the pooled features."""
    return gaussian_sums(pooled(evidence.features))


def fit(total: Tensors) -> Tensors:
    """Fit the mean and whitening of the pooled features."""
    return fit_gaussian(total, SHRINKAGE)


def forms(evidence: Evidence) -> Forms:
    """Return what the fitted tensors are like."""
    return gaussian_forms(pooled(evidence.features).shape[1])


def measure(evidence: Evidence, fitted: Tensors) -> Tensor:
    """Return the mean squared whitened coordinate of the pooled features, (n,)."""
    return mahalanobis(pooled(evidence.features), fitted)


ENTRY = Term(measure, paper="Lee et al. 2018", sums=sums, fit=fit, forms=forms, needs_latent=False)
