"""Mahalanobis distance of the latent E(x) from those of normal images.

An image whose latent is far from all that the encoder said of normal images is odd even where the
generator can draw it. The distance is that of Lee et al. 2018 (arXiv 1807.03888), eq. 2, on
latents.
"""

from __future__ import annotations

from torch import Tensor

from anoscan.scoring.terms import Evidence, Tensors, Term, fit_gaussian, gaussian_sums, mahalanobis

SHRINKAGE = 0.01


def sums(evidence: Evidence) -> Tensors:
    """Gaussian sums of the latents."""
    return gaussian_sums(evidence.z)


def fit(total: Tensors) -> Tensors:
    """Mean and whitening of the latents."""
    return fit_gaussian(total, SHRINKAGE)


def measure(evidence: Evidence, fitted: Tensors) -> Tensor:
    """Mean squared whitened coordinate of E(x), (n,)."""
    return mahalanobis(evidence.z, fitted)


ENTRY = Term(measure, paper="Lee et al. 2018", sums=sums, fit=fit)
