"""Mahalanobis distance of the image's discriminator features from those of normal images.

The discriminator learned to see what makes an image look normal. Mean, standard deviation and
maximum of every channel of every block describe an image in its terms (the maximum keeps what is
small); one Gaussian over them all says how usual that is (Lee et al. 2018, arXiv 1807.03888,
eq. 2, with the GAN's own discriminator).
"""

from __future__ import annotations

import torch
from torch import Tensor

from anoscan.scoring.terms import Evidence, Tensors, Term, fit_gaussian, gaussian_sums, mahalanobis

SHRINKAGE = 0.02


def pooled(features: list[Tensor]) -> Tensor:
    """Mean, standard deviation and maximum of each channel of all blocks, (n, 3 * sum of c_i).

    Of blocks of one place, (n, c_i, 1, 1), the values alone.
    """
    flat = [block.flatten(2).double() for block in features]
    means = [block.mean(2) for block in flat]
    flat = [block for block in flat if block.shape[2] > 1]  # a vector is its own mean and maximum
    spreads = [(block.var(2, correction=0) + 1e-8).sqrt() for block in flat]
    peaks = [block.amax(2) for block in flat]
    return torch.cat(means + spreads + peaks, 1)


def sums(evidence: Evidence) -> Tensors:
    """Gaussian sums of the pooled features."""
    return gaussian_sums(pooled(evidence.features))


def fit(total: Tensors) -> Tensors:
    """Mean and whitening of the pooled features."""
    return fit_gaussian(total, SHRINKAGE)


def measure(evidence: Evidence, fitted: Tensors) -> Tensor:
    """Mean squared whitened coordinate of the pooled features, (n,)."""
    return mahalanobis(pooled(evidence.features), fitted)


ENTRY = Term(measure, paper="Lee et al. 2018", sums=sums, fit=fit, needs_latent=False)
