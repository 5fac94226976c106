from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from anoscan import registry
from anoscan.objectives import squared_gradient_norm
from anoscan.objectives.nonsaturating import GAMMA, r1
from anoscan.objectives.wgan_gp import LAMBDA, gradient_penalty

OBJECTIVES = registry.names("objectives")


class Linear(nn.Module):
    """Realness w.x, whose gradient is w everywhere."""

    def __init__(self, w: Tensor) -> None:
        super().__init__()
        self.w = nn.Parameter(w)

    def forward(self, x: Tensor) -> Tensor:
        return (x * self.w).flatten(1).sum(1)


class Square(nn.Module):
    """Realness |x|^2 / 2, whose gradient is x: it tells where the gradient was taken."""

    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1).square().sum(1) / 2


def images(n: int = 4, channels: int = 3) -> Tensor:
    return torch.randn(n, channels, 5, 5, generator=torch.Generator().manual_seed(0))


def test_gradient_penalty_of_a_linear_critic_is_its_closed_form() -> None:
    w = torch.full((3, 5, 5), 0.5)
    penalty = gradient_penalty(Linear(w), images(), -images(), torch.rand(4, 1, 1, 1))
    assert penalty.item() == pytest.approx(LAMBDA * (w.norm().item() - 1) ** 2, rel=1e-5)


def test_gradient_penalty_is_taken_on_the_segment_between_real_and_fake() -> None:
    real, fake = images(1), images(1) + 3
    alpha = torch.tensor(0.25).view(1, 1, 1, 1)
    penalty = gradient_penalty(Square(), real, fake, alpha)
    expected = LAMBDA * ((0.25 * real + 0.75 * fake).norm().item() - 1) ** 2
    assert penalty.item() == pytest.approx(expected, rel=1e-5)


def test_r1_is_half_gamma_times_the_squared_gradient_at_real_images() -> None:
    real = images()
    penalty = r1(Square(), real, real * 100, torch.zeros(4, 1, 1, 1))
    expected = GAMMA / 2 * real.flatten(1).square().sum(1).mean().item()
    assert penalty.item() == pytest.approx(expected, rel=1e-5)


def test_gradient_norms_can_be_minimised() -> None:
    critic = Linear(torch.ones(3, 5, 5))
    squared_gradient_norm(critic, images()).mean().backward()
    assert critic.w.grad is not None
    torch.testing.assert_close(critic.w.grad, 2 * critic.w.detach())


def test_nonsaturating_losses_at_zero_are_logarithms_of_two() -> None:
    entry = registry.load("objectives", "nonsaturating")
    zero = torch.zeros(3)
    assert entry.discriminator_loss(zero, zero).item() == pytest.approx(2 * math.log(2))
    assert entry.generator_loss(zero).item() == pytest.approx(math.log(2))


def test_wgan_losses_are_differences_of_means() -> None:
    entry = registry.load("objectives", "wgan-gp")
    real, fake = torch.tensor([3.0, 5.0]), torch.tensor([1.0, 2.0])
    assert entry.discriminator_loss(real, fake).item() == -2.5
    assert entry.generator_loss(fake).item() == -1.5


@pytest.mark.parametrize("name", OBJECTIVES)
def test_every_objective_pulls_the_two_networks_apart(name: str) -> None:
    entry = registry.load("objectives", name)
    real = torch.zeros(4, requires_grad=True)
    fake = torch.zeros(4, requires_grad=True)
    entry.discriminator_loss(real, fake).backward()
    assert (real.grad < 0).all(), "more realness of real images must lower the loss"
    assert (fake.grad > 0).all(), "more realness of fakes must raise the loss"
    wanted = torch.zeros(4, requires_grad=True)
    entry.generator_loss(wanted).backward()
    assert (wanted.grad < 0).all(), "the generator wants its fakes to look real"


@pytest.mark.parametrize("name", OBJECTIVES)
def test_every_penalty_is_a_scalar_with_a_gradient(name: str) -> None:
    entry = registry.load("objectives", name)
    critic = nn.Sequential(nn.Flatten(), nn.Linear(75, 8), nn.Softplus(), nn.Linear(8, 1))
    penalty = entry.penalty(critic, images(), -images(), torch.full((4, 1, 1, 1), 0.5))
    assert penalty.shape == ()
    assert penalty.item() >= 0
    penalty.backward()
    assert critic[1].weight.grad.abs().sum() > 0
