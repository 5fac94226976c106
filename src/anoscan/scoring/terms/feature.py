"""Squared residual of discriminator features, all blocks, each channel relative to the usual.

f-AnoGAN's A_D (Schlegl et al. 2019), |f(x) - f(G(E(x)))|^2, with every block instead of the last
one alone, and every channel's square divided by its mean square on normal images.
"""

from __future__ import annotations

import torch
from torch import Tensor

from anoscan.scoring.terms import Evidence, Tensors, Term

FLOOR = 0.1


def _squares(evidence: Evidence) -> list[Tensor]:
    """Mean squared residual of each channel of each block, [(n, c_i)]."""
    pairs = zip(evidence.features, evidence.features_hat, strict=True)
    return [(a - b).double().square().mean((2, 3)) for a, b in pairs]


def sums(evidence: Evidence) -> Tensors:
    """Sum of squared residuals of each channel, by block."""
    squares = _squares(evidence)
    totals = {f"block{i}": block.sum(0) for i, block in enumerate(squares)}
    return {"count": squares[0].new_tensor(float(len(evidence.x)))} | totals


def fit(total: Tensors) -> Tensors:
    """What each channel's square is divided by, (c_i,) by block."""
    count = total["count"]
    usual = {name: value / count for name, value in total.items() if name != "count"}
    return {name: (u + FLOOR * u.mean() + 1e-8).float() for name, u in usual.items()}


def measure(evidence: Evidence, fitted: Tensors) -> Tensor:
    """Mean over blocks of the mean relative squared residual, (n,)."""
    blocks = [
        (squares / fitted[f"block{i}"].double()).mean(1)
        for i, squares in enumerate(_squares(evidence))
    ]
    return torch.stack(blocks).mean(0)


ENTRY = Term(measure, paper="Schlegl et al. 2019", sums=sums, fit=fit)
