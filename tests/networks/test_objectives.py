from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from anoscan.core import registry
from anoscan.core.runtime import seeded
from anoscan.networks.architectures import Discriminator, Shape, equalise
from anoscan.networks.objectives import spread_gap, squared_gradient_norm
from anoscan.networks.objectives.nonsaturating import GAMMA, r1
from anoscan.networks.objectives.wgan_gp import LAMBDA, gradient_penalty

OBJECTIVES = registry.names("objectives")
PENALISED = [name for name in OBJECTIVES if registry.load("objectives", name).penalty]


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


@pytest.mark.parametrize("name", ["wgan", "wgan-gp"])
def test_wgan_losses_are_differences_of_means(name: str) -> None:
    entry = registry.load("objectives", name)
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


def test_bce_is_minus_the_logarithms_of_the_probabilities() -> None:
    entry = registry.load("objectives", "bce")
    real, fake = torch.tensor([2.0, -1.0]), torch.tensor([0.5, 3.0])

    def probability(x: float) -> float:
        return 1 / (1 + math.exp(-x))

    of_real = -(math.log(probability(2)) + math.log(probability(-1))) / 2
    of_fake = -(math.log(1 - probability(0.5)) + math.log(1 - probability(3))) / 2
    assert entry.discriminator_loss(real, fake).item() == pytest.approx(of_real + of_fake)
    expected = -(math.log(probability(0.5)) + math.log(probability(3))) / 2
    assert entry.generator_loss(fake).item() == pytest.approx(expected)


def test_hinge_counts_only_what_is_inside_the_margin() -> None:
    entry = registry.load("objectives", "hinge")
    real, fake = torch.tensor([2.0, 0.5]), torch.tensor([-3.0, 0.25])
    assert entry.discriminator_loss(real, fake).item() == pytest.approx((0 + 0.5 + 0 + 1.25) / 2)
    assert entry.generator_loss(fake).item() == pytest.approx((3 - 0.25) / 2)


def test_the_gap_in_spread_is_zero_for_equal_variety_and_grows_towards_one_image() -> None:
    real = [images(8), 3 * images(8)]
    assert spread_gap(real, [x.flip(0) for x in real]).item() == pytest.approx(0, abs=1e-6)
    halved = [x.mean(0) + (x - x.mean(0)) / 2 for x in real]
    assert spread_gap(real, halved).item() == pytest.approx(math.log(2), rel=1e-4)
    assert spread_gap(halved, real).item() == pytest.approx(math.log(2), rel=1e-4)
    same = [x[:1].expand_as(x).clone().requires_grad_() for x in halved]
    assert spread_gap(real, same).item() > 5


def discriminator(architecture: str = "dcgan") -> Discriminator:
    with seeded(0, "test"):
        built: Discriminator = registry.load("architectures", architecture).discriminator(
            Shape(16, 1, 4, 8)
        )
    return built


def weights(network: nn.Module) -> list[Tensor]:
    return [m.weight for m in network.modules() if isinstance(m, nn.Conv2d | nn.Linear)]


def test_hinge_trains_a_discriminator_whose_weights_have_spectral_norm_one() -> None:
    network = discriminator()
    turn = network.turn_head.weight.detach().clone()
    with seeded(0, "prepare"):
        registry.load("objectives", "hinge").prepare(network)
    for _ in range(100):  # one step of power iteration each
        network(torch.zeros(2, 1, 16, 16))
    for block in [*network.blocks, network.head]:
        for weight in weights(block):
            norm = torch.linalg.matrix_norm(weight.flatten(1), ord=2).item()
            assert norm == pytest.approx(1, abs=0.02)
    assert torch.equal(network.turn_head.weight, turn)


@pytest.mark.parametrize("architecture", registry.names("architectures"))
def test_wgan_clips_all_weights_of_the_game_and_no_norm(architecture: str) -> None:
    network = discriminator(architecture)
    turn = network.turn_head.weight.detach().clone()
    registry.load("objectives", "wgan").constrain(network)
    played = [weight for weight in weights(network) if weight is not network.turn_head.weight]
    for weight in played:
        # 0.01 for 10,000 inputs, where there are many layers
        most = 0.01 if len(played) <= 8 else weight[0].numel() ** -0.5
        assert weight.abs().max().item() == pytest.approx(most)
    for module in network.modules():
        if isinstance(module, nn.GroupNorm):
            assert (module.weight == 1).all()
    assert torch.equal(network.turn_head.weight, turn)


def test_wgan_clips_the_weights_that_act_where_layers_are_equalised() -> None:
    network = discriminator("progressive")
    assert max(weight.abs().max() for weight in weights(network)) > 0.02
    equalise(network)
    registry.load("objectives", "wgan").constrain(network)
    turn = network.turn_head.weight
    for weight in weights(network):
        if weight.shape != turn.shape or not torch.equal(weight, turn):
            most = weight[0].numel() ** -0.5  # 0.01 for 10,000 inputs
            assert weight.abs().max().item() == pytest.approx(most, rel=1e-5)


@pytest.mark.parametrize("size", [32, 64, 128])
@pytest.mark.parametrize("architecture", ["progressive", "resnet"])
def test_a_deep_critic_still_tells_images_apart_with_its_weights_clipped(
    architecture: str, size: int
) -> None:
    with seeded(0, "test"):
        critic = registry.load("architectures", architecture).discriminator(Shape(size, 3, 8, 4))
    x = torch.linspace(-1, 1, 8)[:, None, None, None].expand(8, 3, size, size)
    equalise(critic.eval())
    registry.load("objectives", "wgan").constrain(critic)
    assert np.ptp(critic(x).detach().numpy()) > 1e-6


@pytest.mark.parametrize("name", PENALISED)
def test_every_penalty_is_a_scalar_with_a_gradient(name: str) -> None:
    entry = registry.load("objectives", name)
    critic = nn.Sequential(nn.Flatten(), nn.Linear(75, 8), nn.Softplus(), nn.Linear(8, 1))
    penalty = entry.penalty(critic, images(), -images(), torch.full((4, 1, 1, 1), 0.5))
    assert penalty.shape == ()
    assert penalty.item() >= 0
    penalty.backward()
    assert critic[1].weight.grad.abs().sum() > 0
