"""Adversarial objectives: one file each, as pure functions with their equations.

Losses are minimised. They take realness numbers (n,), float32, higher is more real.
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
        (real realness (n,), fake realness (n,)) -> scalar.
    generator_loss : callable
        Fake realness (n,) -> scalar.
    discriminator_steps : int
        Discriminator steps for each generator step.
    learning_rate, betas
        Of Adam, for both networks.
    paper : str
        Where it comes from.
    penalty : callable, optional
        (discriminator, real, fake, alpha) -> scalar, weight included; images (n, c, s, s),
        alpha (n, 1, 1, 1) uniform in [0, 1). Always computed in float32.
    penalty_every : int
        Discriminator steps from one penalty to the next; the penalty is scaled up by as many
        (lazy regularisation, Karras et al. 2020, arXiv 1912.04958, appendix B).
    variety : float
        Weight of `spread_gap` of the discriminator's features beside the generator's loss, in
        units of that loss: for objectives without a gradient penalty, under which short games end
        in one image.
    prepare : callable, optional
        (discriminator) -> None, once before the game; may parametrise weights. Called for each part
        of a discriminator that has several.
    constrain : callable, optional
        (discriminator) -> None, after each of its steps.
    times_as_long : int
        How many times the images of the later stages its game takes, unless told otherwise: with
        several discriminator steps the generator makes fewer of its own.
    note : str, optional
        What people ask when they see the losses.
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
    """Squared length of the gradient of realness with respect to each image.

    Parameters
    ----------
    x : Tensor of shape (n, c, s, s)

    Returns
    -------
    Tensor of shape (n,), part of the graph, so that it can be minimised.
    """
    x = x.detach().requires_grad_(True)
    (gradient,) = torch.autograd.grad(network(x).sum(), x, create_graph=True)
    return gradient.flatten(1).square().sum(1)


def spread_gap(real: list[Tensor], fake: list[Tensor]) -> Tensor:
    """Mean over blocks of |log(spread of fake / spread of real)|, scalar; 0 for equal variety.

    The statistic of minibatch discrimination (Salimans et al. 2016, arXiv 1606.03498, section 3.2,
    in the form of Karras et al. 2018), matched by the generator as in feature matching (section
    3.1), so that the discriminator judges each image alone and cannot work against it.
    """
    gaps = [(spread(b) / spread(a).detach()).log().abs() for a, b in zip(real, fake, strict=True)]
    return torch.stack(gaps).mean()
