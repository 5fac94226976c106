from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from anoscan.core import registry
from anoscan.core.runtime import seeded
from anoscan.networks.architectures import (
    DoublingConv,
    Growing,
    Networks,
    Shape,
    build,
    parameter_count,
    pyramid,
    widths,
)

ARCHITECTURES = registry.names("architectures")


def networks(name: str, *, size: int = 28, channels: int = 1, width: int = 8) -> Networks:
    with seeded(0, "test"):
        return build(registry.load("architectures", name), Shape(size, channels, 6, width))


@pytest.mark.parametrize("name", ARCHITECTURES)
@pytest.mark.parametrize("size", [16, 28, 30, 64, 65])
@pytest.mark.parametrize("channels", [1, 3])
def test_shapes_and_ranges_hold_at_any_size(name: str, size: int, channels: int) -> None:
    built = networks(name, size=size, channels=channels)
    images = built.generator(torch.randn(3, 6))
    assert images.shape == (3, channels, size, size)
    assert images.abs().max() <= 1
    assert built.discriminator(images).shape == (3,)
    assert built.encoder(images).shape == (3, 6)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_features_go_from_fine_to_coarse(name: str) -> None:
    features = networks(name, size=64).discriminator.features(torch.zeros(2, 1, 64, 64))
    sides = [feature.shape[-1] for feature in features]
    assert sides == sorted(sides, reverse=True)
    assert len(sides) >= 3
    assert sides[-1] <= 2


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_a_gradient_reaches_every_parameter(name: str) -> None:
    built = networks(name)
    z = torch.randn(4, 6)
    for share in (0.0, 0.22, 0.45, 1.0):  # those that grow use other layers as they do
        for network in (built.generator, built.discriminator):
            if isinstance(network, Growing):
                network.grow(share)
        loss = built.discriminator(built.generator(z)).sum()
        features = built.discriminator.features(built.generator(z))
        loss = loss + built.discriminator.rotation(features).square().sum()
        loss = loss + built.encoder(built.generator(z)).square().sum()
        loss.backward()
    for network in (built.generator, built.discriminator, built.encoder):
        for key, parameter in network.named_parameters():
            assert parameter.grad is not None, key
            # A bias right before a normalisation has no effect: only weights must move.
            if parameter.dim() > 1:
                assert parameter.grad.abs().sum() > 0, key


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_a_discriminator_judges_each_image_alone(name: str) -> None:
    discriminator = networks(name).discriminator

    def outputs(x: Tensor) -> list[Tensor]:
        features = discriminator.train().features(x)
        # Realness in training may depend on neighbours (minibatch standard deviation).
        return [discriminator.rotation(features), *features, discriminator.eval()(x)]

    images = torch.randn(6, 1, 28, 28)
    together = outputs(images)
    alone = [torch.cat(parts) for parts in zip(*(outputs(x[None]) for x in images), strict=True)]
    for a, b in zip(together, alone, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_in_the_game_no_image_is_judged_by_neighbours_of_the_other_kind(name: str) -> None:
    discriminator = networks(name).discriminator.train()
    real, fake = torch.randn(4, 1, 28, 28), torch.randn(4, 1, 28, 28)
    of_real, of_fake = copy.deepcopy(discriminator).compare(real, fake)
    same_real = copy.deepcopy(discriminator).compare(real, 9 * fake)[0]
    same_fake = copy.deepcopy(discriminator).compare(9 * real, fake)[1]
    torch.testing.assert_close(of_real, same_real)
    torch.testing.assert_close(of_fake, same_fake)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_no_discriminator_has_batchnorm_or_dropout(name: str) -> None:
    kinds = (nn.modules.batchnorm._BatchNorm, nn.modules.dropout._DropoutNd)
    assert not any(isinstance(m, kinds) for m in networks(name).discriminator.modules())


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_an_encoder_starts_on_the_scale_of_the_prior(name: str) -> None:
    built = networks(name, size=64, width=32)
    with torch.no_grad():
        z = built.encoder(torch.rand(16, 1, 64, 64) * 2 - 1)
    assert 0.1 < z.std() < 2


def test_weights_depend_on_the_seed_and_leave_the_global_generator_alone() -> None:
    before = torch.random.get_rng_state()
    first, second = networks("dcgan"), networks("dcgan")
    assert torch.equal(before, torch.random.get_rng_state())
    for a, b in zip(first.generator.parameters(), second.generator.parameters(), strict=True):
        assert torch.equal(a, b)


def test_pyramid_rounds_up_and_ends_at_two() -> None:
    assert pyramid(64) == [64, 32, 16, 8, 4, 2]
    assert pyramid(28) == [28, 14, 7, 4, 2]
    assert pyramid(30) == [30, 15, 8, 4, 2]


def test_a_map_of_64_pixels_has_the_same_channels_at_any_size() -> None:
    for size, above in [(64, 0), (65, 1), (128, 1), (256, 2), (512, 3)]:
        channels = widths(Shape(size, 3, 6, 32), 8)
        assert channels[above : above + 3] == [32, 64, 128]
        assert min(channels) >= 8


def test_width_64_gives_the_channels_of_anogan() -> None:
    assert widths(Shape(64, 1, 6, 64), 4) == [64, 128, 256, 512]


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_networks_do_not_swell_with_the_image(name: str) -> None:
    with torch.device("meta"):
        built = build(registry.load("architectures", name), Shape(512, 3, 64, 32))
    for network in (built.generator, built.discriminator, built.encoder):
        assert parameter_count(network) < 20e6


@pytest.mark.parametrize("after", [1, 3, 16])
@pytest.mark.parametrize("sides", [(2, 2), (7, 7), (6, 9)])
def test_a_doubling_convolution_is_one_of_repeated_pixels(
    after: int, sides: tuple[int, int]
) -> None:
    layer, x = DoublingConv(5, after, bias=True), torch.randn(2, 5, *sides)
    assert layer.bias is not None
    nn.init.normal_(layer.bias)
    repeated = x.repeat_interleave(2, 2).repeat_interleave(2, 3)
    expected = nn.functional.conv2d(repeated, layer.weight, layer.bias, padding=1)
    assert torch.allclose(layer(x), expected, atol=1e-5)
