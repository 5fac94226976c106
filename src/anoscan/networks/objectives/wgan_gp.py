"""Wasserstein distance with gradient penalty and five critic steps, as in the f-AnoGAN paper.

The critic's loss is eq. 3 of Gulrajani et al. 2017, "Improved Training of Wasserstein GANs" (arXiv
1704.00028). Negative losses are normal: the critic's loss is minus an estimate of a distance.
"""

from __future__ import annotations

from torch import Tensor, nn

from anoscan.networks.objectives import NEGATIVE_LOSSES, Objective, squared_gradient_norm

LAMBDA = 10.0


def discriminator_loss(real: Tensor, fake: Tensor) -> Tensor:
    """E[D(G(z))] - E[D(x)], which is minus the critic's estimate of the distance."""
    return fake.mean() - real.mean()


def generator_loss(fake: Tensor) -> Tensor:
    """-E[D(G(z))]."""
    return -fake.mean()


def gradient_penalty(critic: nn.Module, real: Tensor, fake: Tensor, alpha: Tensor) -> Tensor:
    """Lambda * E[(|grad D(x')| - 1)^2] at x' = alpha x + (1 - alpha) G(z).

    Each image has one alpha (n, 1, 1, 1) in [0, 1), not one for each channel. Otherwise x' leaves
    the segment from x to G(z).
    """
    mixed = alpha * real + (1 - alpha) * fake
    # The root of an exact zero has no gradient.
    norm = (squared_gradient_norm(critic, mixed) + 1e-12).sqrt()
    return LAMBDA * (norm - 1).square().mean()


ENTRY = Objective(
    discriminator_loss,
    generator_loss,
    penalty=gradient_penalty,
    penalty_every=1,
    discriminator_steps=5,
    times_as_long=3,
    learning_rate=2e-4,
    betas=(0.0, 0.9),
    paper="Gulrajani et al. 2017",
    note=NEGATIVE_LOSSES,
)
