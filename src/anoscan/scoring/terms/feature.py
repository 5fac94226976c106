"""Squared residual of features of all blocks, each channel relative to normal images.

This is f-AnoGAN's A_D (Schlegl et al. 2019), |f(x) - f(G(E(x)))|^2, but of every block instead of
the last. The square of every channel is divided by its mean on normal images, plus a tenth of the
mean over the channels of the block.
"""

from __future__ import annotations

import torch
from torch import Tensor

from anoscan.core.tensors import Like
from anoscan.scoring.terms import Evidence, Forms, Tensors, Term

FLOOR = 0.1
LEAST = 1e-8  # keeps a divisor above zero


def _squares(evidence: Evidence) -> list[Tensor]:
    """Return the mean squared residual of each channel, (n, c_i) for each block."""
    pairs = zip(evidence.features, evidence.features_hat, strict=True)
    # Channels come last, as they lie in memory.
    flat = ((a - b).permute(0, 2, 3, 1).flatten(1, 2) for a, b in pairs)
    return [difference.square().mean(1).double() for difference in flat]


def sums(evidence: Evidence) -> Tensors:
    """Return the sums over images of the squared residual of each channel, by block."""
    squares = _squares(evidence)
    totals = {f"block{i}": block.sum(0) for i, block in enumerate(squares)}
    return {"count": squares[0].new_tensor(float(len(evidence.x)))} | totals


def fit(total: Tensors) -> Tensors:
    """Compute the divisor of the square of each channel, (c_i,) for each block."""
    count = total["count"]
    usual = {name: value / count for name, value in total.items() if name != "count"}
    return {name: (u + FLOOR * u.mean() + LEAST).float() for name, u in usual.items()}


def forms(evidence: Evidence) -> Forms:
    """Return what the fitted divisors are like."""
    return {
        f"block{i}": Like((block.shape[1],), low=LEAST / 2)
        for i, block in enumerate(evidence.features)
    }


def measure(evidence: Evidence, fitted: Tensors) -> Tensor:
    """Return the mean over blocks of the mean relative squared residual, (n,)."""
    blocks = [
        (squares / fitted[f"block{i}"].double()).mean(1)
        for i, squares in enumerate(_squares(evidence))
    ]
    return torch.stack(blocks).mean(0)


ENTRY = Term(measure, paper="Schlegl et al. 2019", sums=sums, fit=fit, forms=forms)
