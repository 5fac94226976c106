"""AnoGAN's own score, unscaled: sums of absolute residuals, of pixels and of the last block.

Schlegl et al. 2017, "Unsupervised Anomaly Detection with Generative Adversarial Networks" (arXiv
1703.05921), sections 2.2 and 2.3, with lambda = 0.1 and images in [-1, 1]:

    R(x) = sum |x - G(z)|,  D(x) = sum |f(x) - f(G(z))|,  A(x) = (1 - lambda) R(x) + lambda D(x)

Only ``--score anogan`` contains this term. ``--mapping search`` finds z by minimising the same A.
"""

from __future__ import annotations

from torch import Tensor

from anoscan.scoring.terms import Evidence, Tensors, Term

LAMBDA = 0.1


def absolute(a: Tensor, b: Tensor) -> Tensor:
    """Return the sum of absolute differences of each image, (n,) float64."""
    return (a - b).abs().flatten(1).double().sum(1)


def combined(residual: Tensor, discrimination: Tensor) -> Tensor:
    """Return A = (1 - lambda) R + lambda D, (n,)."""
    return (1 - LAMBDA) * residual + LAMBDA * discrimination


def measure(evidence: Evidence, fitted: Tensors) -> Tensor:
    """Return A(x), (n,) float64."""
    residual = absolute(evidence.x, evidence.x_hat)
    return combined(residual, absolute(evidence.features[-1], evidence.features_hat[-1]))


ENTRY = Term(measure, paper="Schlegl et al. 2017")
