from __future__ import annotations

import pytest
import torch
from torch import nn

from anoscan import registry
from anoscan.architectures import Networks, Shape, build, pyramid
from anoscan.runtime import seeded

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
    assert sides[-1] == 2


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_a_gradient_reaches_every_parameter(name: str) -> None:
    built = networks(name)
    z = torch.randn(4, 6)
    loss = built.discriminator(built.generator(z)).sum()
    features = built.discriminator.features(built.generator(z))
    loss = loss + built.discriminator.turn(features).square().sum()
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
    built = networks(name)
    built.discriminator.train()
    images = torch.randn(6, 1, 28, 28)
    together = built.discriminator(images)
    alone = torch.cat([built.discriminator(image[None]) for image in images])
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_no_discriminator_has_batchnorm_or_dropout(name: str) -> None:
    kinds = (nn.modules.batchnorm._BatchNorm, nn.modules.dropout._DropoutNd)
    assert not any(isinstance(m, kinds) for m in networks(name).discriminator.modules())


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
