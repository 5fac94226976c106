"""Squared pixel residual |x - G(E(x))|^2, each pixel relative to what is usual there.

f-AnoGAN's A_R (Schlegl et al. 2019) with every pixel's square divided by its mean square on normal
images, plus a tenth of the overall mean: edges that always light up count less, and pixels that
are always empty do not count without limit.
"""

from __future__ import annotations

from torch import Tensor

from anoscan.scoring.terms import Evidence, Tensors, Term

FLOOR = 0.1


def _squares(evidence: Evidence) -> Tensor:
    return (evidence.x - evidence.x_hat).square().double()


def sums(evidence: Evidence) -> Tensors:
    """Sum of squared residuals of each pixel."""
    squares = _squares(evidence)
    return {"count": squares.new_tensor(float(len(squares))), "squares": squares.sum(0)}


def fit(total: Tensors) -> Tensors:
    """What each pixel's square is divided by, (c, s, s)."""
    usual = total["squares"] / total["count"]
    return {"usual": (usual + FLOOR * usual.mean() + 1e-8).float()}


def measure(evidence: Evidence, fitted: Tensors) -> Tensor:
    """Mean relative squared residual, (n,)."""
    return (_squares(evidence) / fitted["usual"].double()).flatten(1).mean(1)


ENTRY = Term(measure, paper="Schlegl et al. 2019", sums=sums, fit=fit)
