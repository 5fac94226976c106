"""Squared pixel residual |x - G(E(x))|^2, each pixel relative to normal images.

This is f-AnoGAN's A_R (Schlegl et al. 2019), but every square is divided by its mean on normal
images. So edges, which always have a residual, count less. A tenth of the mean over all pixels is
added to the divisor, so that pixels that are always empty do not count without limit.
"""

from __future__ import annotations

from torch import Tensor

from anoscan.core.tensors import Like
from anoscan.scoring.terms import Evidence, Forms, Tensors, Term

FLOOR = 0.1
LEAST = 1e-8  # keeps a divisor above zero


def _squares(evidence: Evidence) -> Tensor:
    return (evidence.x - evidence.x_hat).square().double()


def sums(evidence: Evidence) -> Tensors:
    """Return the number of images, and the sum (c, s, s) of their squared residuals."""
    squares = _squares(evidence)
    return {"count": squares.new_tensor(float(len(squares))), "squares": squares.sum(0)}


def fit(total: Tensors) -> Tensors:
    """Compute the divisor of the square of each pixel, (c, s, s)."""
    usual = total["squares"] / total["count"]
    return {"usual": (usual + FLOOR * usual.mean() + LEAST).float()}


def forms(evidence: Evidence) -> Forms:
    """Return what the fitted divisors are like."""
    return {"usual": Like(tuple(evidence.x.shape[1:]), low=LEAST / 2)}


def measure(evidence: Evidence, fitted: Tensors) -> Tensor:
    """Return the mean relative squared residual, (n,)."""
    return (_squares(evidence) / fitted["usual"].double()).flatten(1).mean(1)


ENTRY = Term(measure, paper="Schlegl et al. 2019", sums=sums, fit=fit, forms=forms)
