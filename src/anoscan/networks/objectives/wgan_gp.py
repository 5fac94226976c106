"""Wasserstein distance with gradient penalty, five critic steps: the f-AnoGAN paper's choice.

Gulrajani et al. 2017, "Improved Training of Wasserstein GANs" (arXiv 1704.00028), eq. 3.
Negative losses are normal: the critic's loss is minus an estimate of a distance.
"""

from __future__ import annotations

from torch import Tensor, nn

from anoscan.networks.objectives import NEGATIVE_LOSSES, Objective, squared_gradient_norm

LAMBDA = 10.0


def discriminator_loss(real: Tensor, fake: Tensor) -> Tensor:
    """E[D(G(z))] - E[D(x)]: minus the distance between the two as the critic sees it."""
    return fake.mean() - real.mean()


def generator_loss(fake: Tensor) -> Tensor:
    """-E[D(G(z))]."""
    return -fake.mean()


def gradient_penalty(critic: nn.Module, real: Tensor, fake: Tensor, alpha: Tensor) -> Tensor:
    """Lambda * E[(|grad D(x')| - 1)^2] at x' = alpha x + (1 - alpha) G(z).

    Parameters
    ----------
    real, fake : Tensor of shape (n, c, s, s)
    alpha : Tensor of shape (n, 1, 1, 1) in [0, 1)
        One value an image, not one a channel: otherwise x' leaves the segment.
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
