"""Logistic loss with a lazy R1 penalty, the cheapest stable choice (the default).

The generator's loss is the one that does not saturate (Goodfellow et al. 2014, arXiv 1406.2661,
section 3). The penalty is R1 of Mescheder et al. 2018, "Which Training Methods for GANs do actually
Converge?" (arXiv 1801.04406), eq. 9: gamma / 2 * E[ |grad D(x)|^2 ] on real images. It is lazy,
since it is computed only in every eighth step.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn.functional import softplus

from anoscan.networks.objectives import Objective, squared_gradient_norm

GAMMA = 1.0


def discriminator_loss(real: Tensor, fake: Tensor) -> Tensor:
    """-log sigmoid(D(x)) - log(1 - sigmoid(D(G(z)))), means over the batch."""
    return softplus(-real).mean() + softplus(fake).mean()


def generator_loss(fake: Tensor) -> Tensor:
    """-log sigmoid(D(G(z))), mean over the batch."""
    return softplus(-fake).mean()


def r1(discriminator: nn.Module, real: Tensor, fake: Tensor, alpha: Tensor) -> Tensor:
    """Gamma / 2 * mean squared gradient norm at the real images (eq. 9)."""
    return GAMMA / 2 * squared_gradient_norm(discriminator, real).mean()


ENTRY = Objective(
    discriminator_loss,
    generator_loss,
    penalty=r1,
    penalty_every=8,
    discriminator_steps=1,
    learning_rate=4e-4,
    betas=(0.5, 0.99),
    paper="Goodfellow et al. 2014; Mescheder et al. 2018",
)
