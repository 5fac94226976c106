"""Adversarial objectives: each file holds one, as pure functions with their equations.

Losses are minimised. They take realness (n,), float32, where higher is more real.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from anoscan.networks.architectures import spread

Penalty = Callable[[nn.Module, Tensor, Tensor, Tensor], Tensor]

NEGATIVE_LOSSES = "negative losses are normal for a WGAN: the discriminator's is minus a distance"


@dataclass(frozen=True)
class Objective:
    """What the discriminator and the generator minimise, and the schedule that suits it.

    Parameters
    ----------
    discriminator_loss : callable
        (realness of real images (n,), realness of generated images (n,)) -> scalar.
    generator_loss : callable
        (realness of generated images (n,)) -> scalar.
    discriminator_steps : int
        Number of discriminator steps for each generator step.
    learning_rate, betas : float, (float, float)
        Settings of Adam, for both networks.
    penalty : callable, optional
        (discriminator, real, fake, alpha) -> scalar that includes its weight. Images are (n, c, s,
        s), and alpha is (n, 1, 1, 1), uniform in [0, 1). The penalty is always computed in float32.
    penalty_every : int
        Number of discriminator steps from one penalty to the next. The penalty is multiplied by it
        (lazy regularisation, Karras et al. 2020, arXiv 1912.04958, appendix B).
    variety : float
        Weight of the `spread_gap` of the discriminator's features beside the generator's loss, in
        units of that loss. It is for objectives without a gradient penalty, with which short
        trainings end in one image.
    prepare : callable, optional
        (discriminator) -> None, called once before the GAN stage. It may parametrise weights. For a
        discriminator of several parts it is called for each part.
    constrain : callable, optional
        (discriminator) -> None, called after each discriminator step.
    times_as_long : int
        Factor by which the GAN stage is longer by default. With several discriminator steps for
        each of its own, the generator makes fewer steps.
    note : str, optional
        Explains the losses to users who see them.
    """

    discriminator_loss: Callable[[Tensor, Tensor], Tensor]
    generator_loss: Callable[[Tensor], Tensor]
    discriminator_steps: int
    learning_rate: float
    betas: tuple[float, float]
    paper: str
    penalty: Penalty | None = None
    penalty_every: int = 1
    variety: float = 0.0
    prepare: Callable[[nn.Module], None] | None = None
    constrain: Callable[[nn.Module], None] | None = None
    times_as_long: int = 1
    note: str | None = None


def squared_gradient_norm(network: nn.Module, x: Tensor) -> Tensor:
    """Return the squared norm (n,) of the gradient of realness with respect to each image.

    The norm is part of the graph, so it can be minimised.
    """
    x = x.detach().requires_grad_(True)
    (gradient,) = torch.autograd.grad(network(x).sum(), x, create_graph=True)
    return gradient.flatten(1).square().sum(1)


def spread_gap(real: list[Tensor], fake: list[Tensor]) -> Tensor:
    """Mean over blocks of |log(spread of fake / spread of real)|, scalar; 0 for equal variety.

    `real` and `fake` are features of a discriminator. The spread is the statistic of minibatch
    discrimination (Salimans et al. 2016, arXiv 1606.03498, section 3.2, in the form of Karras et
    al. 2018). The generator matches it as in feature matching (section 3.1). So the discriminator
    judges each image alone and cannot work against the term.
    """
    gaps = [(spread(b) / spread(a).detach()).log().abs() for a, b in zip(real, fake, strict=True)]
    return torch.stack(gaps).mean()
