"""Growth, fade-in, equalised learning rates and what they leave behind."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from anoscan.core import registry
from anoscan.core.config import TrainConfig
from anoscan.core.errors import TrainingInterrupted
from anoscan.core.runtime import Runtime, seeded
from anoscan.detector import Detector
from anoscan.images.decode import ImageRule
from anoscan.model.model import fresh_networks
from anoscan.networks.architectures import GROWN, Shape, equalise, growth, halved, plain_state
from anoscan.networks.architectures.progressive import (
    ENTRY,
    Generator,
    GrowingDiscriminator,
    PixelNorm,
)
from anoscan.networks.gan_stage import GanStage
from anoscan.networks.loop import Batches, Position, Stage, run
from tests.conftest import Digits

SIZES = [16, 28, 30]


def shape(size: int = 16) -> Shape:
    return Shape(size, channels=3, latent_dim=5, width=4)


def pair(size: int = 16) -> tuple[Generator, GrowingDiscriminator]:
    with seeded(0, "test"):
        return Generator(shape(size)), GrowingDiscriminator(shape(size)).eval()


def at(network: Generator | GrowingDiscriminator, level: int, alpha: float) -> None:
    network.level, network.alpha = level, alpha


@pytest.mark.parametrize("size", SIZES)
def test_a_new_level_starts_as_the_enlarged_lower_one_and_ends_as_itself(size: int) -> None:
    generator, discriminator = pair(size)
    z, x = torch.randn(3, 5), torch.rand(3, 3, size, size) * 2 - 1
    for level in range(len(generator.sides) - 2):
        found: dict[float, tuple[Tensor, Tensor]] = {}
        for alpha in (0.0, 0.5, 1.0):
            for network in (generator, discriminator):
                at(network, level, alpha)
            found[alpha] = generator(z), discriminator(x)
        for network in (generator, discriminator):
            at(network, level + 1, 1.0)
        torch.testing.assert_close(found[0.0][0], generator(z))
        torch.testing.assert_close(found[0.0][1], discriminator(x))
        for a, b in zip(found[0.5], found[1.0], strict=True):
            assert not torch.allclose(a, b)


@pytest.mark.parametrize("size", SIZES)
def test_at_every_level_images_have_full_size_and_no_finer_detail(size: int) -> None:
    generator, _ = pair(size)
    for level in range(len(generator.sides) - 1):
        at(generator, level, 1.0)
        images = generator(torch.randn(2, 5))
        assert images.shape == (2, 3, size, size)
        coarse = generator.shrunk(images, level)
        assert coarse.shape[-1] == generator.sides[level]
        assert torch.equal(generator.enlarged(coarse), images)


def test_real_images_fade_between_their_own_resolutions() -> None:
    _, discriminator = pair(28)
    x = torch.rand(2, 3, 28, 28)
    at(discriminator, 1, 0.0)
    # Nothing of the 14x14 level is seen yet: the image is that of the 7x7 level.
    coarse = halved(halved(x))
    torch.testing.assert_close(halved(halved(discriminator.faded(x))), coarse)
    assert discriminator.faded(x).unique().numel() <= coarse.unique().numel()
    at(discriminator, 0, 0.25)
    smooth = torch.nn.functional.interpolate(halved(x), scale_factor=2)
    torch.testing.assert_close(discriminator.faded(x), 0.75 * smooth + 0.25 * x)
    at(discriminator, 0, 1.0)
    assert discriminator.faded(x) is x


def test_growth_starts_at_the_coarsest_level_never_shrinks_and_ends_at_full_size() -> None:
    steps = [growth(index / 1000, 4) for index in range(1001)]
    assert steps[0] == (4, 1.0)
    assert all(step == (0, 1.0) for step in steps[int(1000 * GROWN) :])
    reached = [4 - level - 1 + alpha for level, alpha in steps]
    assert reached == sorted(reached)
    assert {level for level, _ in steps} == {0, 1, 2, 3, 4}


@pytest.mark.parametrize("size", SIZES)
def test_latents_do_not_shrink_with_the_contrast_of_a_batch(size: int) -> None:
    with seeded(0, "test"):
        encoder = ENTRY.encoder(shape(size)).train()
    x = torch.rand(8, 3, size, size) * 2 - 1
    torch.testing.assert_close(encoder(x / 4), encoder(x), rtol=0.02, atol=0.02)


def test_low_levels_leave_the_fine_layers_alone() -> None:
    generator, discriminator = pair(16)
    for network in (generator, discriminator):
        network.grow(0.0)
    discriminator(generator(torch.randn(2, 5))).sum().backward()
    assert all(p.grad is None for p in generator.blocks[0].parameters())
    assert all(p.grad is None for p in discriminator.blocks[0].parameters())
    assert all(p.grad is not None for p in discriminator.blocks[-1].parameters())


def test_equalised_layers_act_as_before_and_learn_at_the_same_relative_speed() -> None:
    relative = []
    for inputs in (32, 512, 2048):
        layer = nn.Linear(inputs, 64)
        nn.init.kaiming_normal_(layer.weight)
        before = layer.weight.detach().clone()
        equalise(layer)
        torch.testing.assert_close(layer.weight.detach(), before)
        optimizer = torch.optim.Adam(layer.parameters(), lr=1e-3)
        layer(torch.randn(4, inputs)).square().sum().backward()
        optimizer.step()
        relative.append(((layer.weight - before).norm() / before.norm()).item())
    assert relative[0] == pytest.approx(relative[1], rel=0.1)
    assert relative[2] == pytest.approx(relative[1], rel=0.1)
    # 512 inputs are the reference: there the step is that of the plain layer.
    assert relative[1] == pytest.approx(1e-3 / (2 / 512) ** 0.5, rel=0.1)


def test_the_plain_state_of_an_equalised_network_fits_a_plain_one_and_acts_alike() -> None:
    generator, _ = pair()
    z = torch.randn(3, 5)
    equalise(generator)
    with torch.no_grad():
        for parameter in generator.parameters():
            parameter.add_(0.01)
    plain = Generator(shape())
    plain.load_state_dict(plain_state(generator))
    torch.testing.assert_close(plain(z), generator(z))


def test_pixel_norm_gives_every_place_unit_mean_square() -> None:
    out = PixelNorm()(torch.randn(2, 8, 3, 3) * 7)
    torch.testing.assert_close(out.square().mean(1), torch.ones(2, 3, 3))


def test_realness_in_training_sees_how_much_a_batch_varies() -> None:
    _, discriminator = pair()
    discriminator.train()
    x = torch.randn(1, 3, 16, 16)
    same, varied = x.expand(4, -1, -1, -1), torch.cat([x, torch.randn(3, 3, 16, 16)])
    assert not torch.allclose(discriminator(same)[0], discriminator(varied)[0])
    discriminator.eval()
    torch.testing.assert_close(discriminator(same)[0], discriminator(varied)[0])


def test_evaluation_uses_the_spread_that_real_batches_had(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("anoscan.networks.architectures.progressive.MEMORY", 0.5)
    _, discriminator = pair()
    discriminator.train()
    real, fake = torch.randn(8, 3, 16, 16), torch.zeros(8, 3, 16, 16)
    for _ in range(20):
        discriminator.compare(real, fake)
    torch.testing.assert_close(
        discriminator.eval()(real), discriminator.train()(real), rtol=1e-3, atol=1e-3
    )


@pytest.mark.parametrize("objective", registry.names("objectives"))
def test_growing_networks_train_in_bfloat16_at_odd_sizes(objective: str) -> None:
    config = TrainConfig(
        size=28, channels=1, architecture="progressive", latent_dim=5, width=4, batch_size=4,
        images_shown=48,
    )  # fmt: skip
    pixels = np.random.default_rng(0).uniform(-1, 1, (9, 1, 28, 28)).astype(np.float32)
    device = torch.device("cpu")
    stage = GanStage(
        fresh_networks(config, ImageRule(size=28, channels=1, window=None)),
        registry.load("objectives", objective),
        Batches(pixels, np.arange(9), 4, 0, "gan", device),
        config,
        Runtime(device, "bfloat16", 1),
        few=True,
    )
    levels = []
    for index in range(12):
        losses = stage.step(index)
        assert all(torch.isfinite(loss) for loss in losses.values())
        levels.append(stage.discriminator.level)
    assert sorted(set(levels)) == [0, 1, 2, 3]


@pytest.mark.parametrize(
    "objective", ["nonsaturating", pytest.param("hinge", marks=pytest.mark.slow)]
)
def test_a_run_resumed_while_it_grows_ends_with_the_same_bytes(
    objective: str, few: Digits, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = {
        "architecture": "progressive",
        "objective": objective,
        "images_shown": 320,
        "encoder_images_shown": 64,
        "rotation_images_shown": 64,
        "width": 4,
    }
    whole = Detector.train(few.normal, name="run", path=tmp_path / "whole.safetensors", **settings)

    def stop_early(stage: Stage, **arguments: object) -> None:
        position = arguments["position"]
        assert isinstance(position, Position)
        run(stage, **{**arguments, "stopping": lambda: position.step >= 4})  # type: ignore[arg-type]

    path = tmp_path / "resumed.safetensors"
    with monkeypatch.context() as patch:
        patch.setattr("anoscan.networks.stages.run", stop_early)
        with pytest.raises(TrainingInterrupted):
            Detector.train(few.normal, name="run", path=path, **settings)
    resumed = Detector.train(few.normal, name="run", path=path, resume=True, **settings)
    assert resumed.reference.sha256 == whole.reference.sha256
    # What is kept has full size, and no trace of how it was trained.
    kept = resumed.model.networks
    plain = ENTRY.generator(Shape(16, 1, 64, 4))
    assert kept.generator.state_dict().keys() == plain.state_dict().keys()
    assert isinstance(kept.generator, Generator)
    assert (kept.generator.level, kept.generator.alpha) == (0, 1.0)


def test_one_step_of_training_leaves_networks_of_full_size(few: Digits, tmp_path: Path) -> None:
    settings = {"images_shown": 1, "encoder_images_shown": 1, "batch_size": 2, "width": 4}
    detector = Detector.train(
        few.normal, path=tmp_path / "m.safetensors", architecture="progressive", **settings
    )
    generator = detector.model.networks.generator
    assert isinstance(generator, Generator)
    assert (generator.level, generator.alpha) == (0, 1.0)
