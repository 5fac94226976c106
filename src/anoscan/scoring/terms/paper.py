"""f-AnoGAN's own score, unscaled: mean squared residuals of the pixels and of the last block.

Schlegl et al. 2019 (doi 10.1016/j.media.2019.01.010), eq. 6:

    A(x) = 1/n |x - G(E(x))|^2 + kappa / n_d |f(x) - f(G(E(x)))|^2,  kappa = 1

The default score does not contain this term; ``--score paper`` asks for it.
"""

from __future__ import annotations

from torch import Tensor

from anoscan.scoring.terms import Evidence, Tensors, Term

KAPPA = 1.0


def measure(evidence: Evidence, fitted: Tensors) -> Tensor:
    """Return A(x), (n,) float64."""
    pixel = (evidence.x - evidence.x_hat).double().square().flatten(1).mean(1)
    last, last_hat = evidence.features[-1], evidence.features_hat[-1]
    return pixel + KAPPA * (last - last_hat).double().square().flatten(1).mean(1)


ENTRY = Term(measure, paper="Schlegl et al. 2019")
