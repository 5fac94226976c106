"""Mahalanobis distance of the latent E(x) from those of normal images.

An image whose latent is far from the latents of normal images is anomalous even where the generator
can reconstruct it. The distance is that of Lee et al. 2018 (arXiv 1807.03888), eq. 2, on latents.
"""

from __future__ import annotations

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

SHRINKAGE = 0.01


def sums(evidence: Evidence) -> Tensors:
    """Return the Gaussian sums of the latents."""
    return gaussian_sums(evidence.z)


def fit(total: Tensors) -> Tensors:
    """Fit the mean and whitening of the latents."""
    return fit_gaussian(total, SHRINKAGE)


def forms(evidence: Evidence) -> Forms:
    """Return what the fitted tensors are like."""
    return gaussian_forms(evidence.z.shape[1])


def measure(evidence: Evidence, fitted: Tensors) -> Tensor:
    """Return the mean squared whitened coordinate of the latent, (n,)."""
    return mahalanobis(evidence.z, fitted)


ENTRY = Term(measure, paper="Lee et al. 2018", sums=sums, fit=fit, forms=forms)
