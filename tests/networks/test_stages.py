"""The stages that train networks, a step at a time."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from anoscan.core import registry
from anoscan.core.config import AUGMENTATIONS, TrainConfig
from anoscan.core.errors import UsageError
from anoscan.core.runtime import Runtime, random_stream
from anoscan.images.decode import ImageRule, decode
from anoscan.images.files import find
from anoscan.model.model import fresh_networks
from anoscan.networks.architectures import Networks
from anoscan.networks.augmentation import VIEWS, cut_paste, discriminator_view
from anoscan.networks.encoder_stage import EncoderStage
from anoscan.networks.gan_stage import GanStage, sample
from anoscan.networks.loop import (
    Batches,
    Position,
    run,
)
from anoscan.networks.rotation_stage import RotationStage, rotate_randomly
from tests.conftest import Digits

CPU = Runtime(torch.device("cpu"), "float32", 1)
CONFIG = TrainConfig(
    size=16, channels=1, latent_dim=4, width=4, batch_size=4, images_shown=8, ema_images=100
)


RULE = ImageRule(size=16, channels=1, window=None)


def pixels(n: int = 10) -> np.ndarray:
    return np.random.default_rng(0).uniform(-1, 1, (n, 1, 16, 16)).astype(np.float32)


def batches(name: str = "gan", n: int = 10) -> Batches:
    return Batches(pixels(n), np.arange(n), 4, 0, name, torch.device("cpu"))


def copy_of(network: nn.Module) -> dict[str, Tensor]:
    return {key: value.clone() for key, value in network.state_dict().items()}


def moved(before: dict[str, Tensor], network: nn.Module) -> set[str]:
    after = network.state_dict()
    return {key for key, value in before.items() if not torch.equal(value, after[key])}


def gan(objective: str = "nonsaturating", architecture: str = "dcgan") -> GanStage:
    config = TrainConfig.from_dict(CONFIG.to_dict() | {"architecture": architecture})
    networks = fresh_networks(config, RULE)
    entry = registry.load("objectives", objective)
    return GanStage(networks, entry, batches(), config, CPU, few=False)


def quietly(
    stage: GanStage | RotationStage | EncoderStage, steps: int, position: Position | None = None
) -> None:
    run(
        stage,
        steps=steps,
        images_per_step=4,
        position=position or Position(),
        on_progress=lambda progress: None,
        checkpoint=lambda position: None,
        stopping=lambda: False,
    )


@pytest.mark.parametrize("objective", registry.names("objectives"))
@pytest.mark.parametrize("architecture", registry.names("architectures"))
def test_every_weight_of_both_networks_moves(objective: str, architecture: str) -> None:
    stage = gan(objective, architecture)
    before = {name: copy_of(module) for name, module in stage.modules.items()}
    quietly(stage, 10)
    for name, module in stage.modules.items():
        weights = {key for key, value in module.named_parameters() if value.dim() > 1}
        # The head for quarter turns has its own stage; layers of a resolution that this short game
        # was not at stay as they are.
        still = {key for key in weights if key.startswith(("turn_head", "to_image", "from_image"))}
        assert weights - still <= moved(before[name], module), name


class OnlyFloat32(TorchDispatchMode):
    """Fails where a tensor of float64 is made, which Apple's mps does not have."""

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> object:
        made = func(*args, **(kwargs or {}))
        for value in tree_leaves(made):
            assert not isinstance(value, Tensor) or value.dtype != torch.float64, func
        return made


@pytest.mark.parametrize("objective", registry.names("objectives"))
@pytest.mark.parametrize("architecture", registry.names("architectures"))
def test_stages_ask_for_nothing_that_a_device_without_float64_lacks(
    objective: str, architecture: str
) -> None:
    game = gan(objective, architecture)
    turns = RotationStage(game.averages[1], batches("rotation"), 2, CONFIG, CPU, few=False)
    with OnlyFloat32():
        for stage in (game, turns):
            stage.step(0)
    for mapping in ("izi", "izi_f", "ziz"):
        entry = registry.load("mappings", mapping)
        encoder = EncoderStage(game.trained(), entry, batches("encoder"), CONFIG, CPU)
        with OnlyFloat32():
            encoder.step(0)


def blobs(channels: int) -> np.ndarray:
    """256 soft discs, each at a place of its own."""
    centres = np.random.default_rng(0).uniform(5, 10, (2, 256, 1, 1))
    down, across = np.mgrid[:16, :16]
    discs = np.exp(-((down - centres[0]) ** 2 + (across - centres[1]) ** 2) / 12)
    return np.repeat((1.6 * discs - 0.8)[:, None], channels, 1).astype(np.float32)


def distances(a: np.ndarray, b: np.ndarray) -> float:
    """Mean squared distance of images to the nearest of others."""
    return float(np.mean([np.square(image - b).mean((1, 2, 3)).min() for image in a]))


@pytest.mark.parametrize(
    ("architecture", "objective", "channels"),
    sorted(
        {(name, "nonsaturating", n) for name in registry.names("architectures") for n in (1, 3)}
        | {("dcgan", name, n) for name in registry.names("objectives") for n in (1, 3)}
        | {("resnet", "wgan", n) for n in (1, 3)}  # many layers behind clipped weights
    ),
)
def test_a_short_game_brings_samples_to_the_images_and_covers_them(
    architecture: str, objective: str, channels: int
) -> None:
    entry = registry.load("objectives", objective)
    steps = 80 if entry.discriminator_steps == 1 else 200
    config = TrainConfig(
        size=16, channels=channels, architecture=architecture, latent_dim=4, width=8,
        batch_size=16, images_shown=16 * steps, ema_images=400, learning_rate=2e-3,
    )  # fmt: skip
    shown = blobs(channels)
    source = Batches(shown, np.arange(len(shown)), 16, 0, "gan", torch.device("cpu"))
    networks = fresh_networks(config, ImageRule(size=16, channels=channels, window=None))
    stage = GanStage(networks, entry, source, config, CPU, few=False)
    generator = stage.averages[0].eval()
    before = sample(generator, 64, 4, 0, "test").numpy()
    for index in range(steps):
        stage.step(index)
    after = sample(generator, 64, 4, 0, "test").numpy()
    assert distances(after, shown) < 0.8 * distances(before, shown), "samples look like no image"
    assert distances(shown, after) < 0.8 * distances(shown, before), "images look like no sample"


@pytest.mark.parametrize("objective", registry.names("objectives"))
def test_only_games_without_a_gradient_penalty_match_variety(objective: str) -> None:
    stage = gan(objective)
    losses = stage._generator_step(batches()(0), stage.generator(torch.randn(4, 4)))
    assert ("variety" in losses) == (stage.objective.penalty is None)


def test_matching_variety_drives_the_generator() -> None:
    def after(variety: float) -> dict[str, Tensor]:
        stage = gan("bce")
        stage.objective = dataclasses.replace(stage.objective, variety=variety)
        quietly(stage, 2)
        return copy_of(stage.generator)

    without, with_it = after(0.0), after(2.0)
    assert any(not torch.equal(without[key], with_it[key]) for key in without)


def test_the_average_is_of_the_weights_as_they_act() -> None:
    stage = gan("hinge")
    for index in range(3):
        stage.step(index)
    average = stage.averages[1].state_dict()
    assert average.keys() == fresh_networks(CONFIG, RULE).discriminator.state_dict().keys()
    for index in range(10_000, 12_000, 4):  # far into training: 25 steps halve the distance
        stage._average_step(index)
    assert isinstance(stage.discriminator.blocks[0], nn.Sequential)
    acting = stage.discriminator.blocks[0][1].weight
    torch.testing.assert_close(average["blocks.0.1.weight"], acting, rtol=1e-3, atol=1e-4)
    norm = torch.linalg.matrix_norm(average["blocks.0.1.weight"].flatten(1), ord=2)
    assert norm.item() == pytest.approx(1, abs=0.05)


def test_the_rotation_stage_moves_all_but_the_head_for_realness() -> None:
    discriminator = fresh_networks(CONFIG, RULE).discriminator
    stage = RotationStage(discriminator, batches("rotation"), 10, CONFIG, CPU, few=False)
    before = copy_of(discriminator)
    quietly(stage, 10)
    weights = {key for key, value in discriminator.named_parameters() if value.dim() > 1}
    assert weights - {"head.weight"} <= moved(before, discriminator)
    assert not {"head.weight", "head.bias"} & moved(before, discriminator)


@pytest.mark.parametrize("architecture", registry.names("architectures"))
def test_the_rotation_stage_learns_to_name_the_turn_of_real_digits(
    architecture: str, digits: Digits
) -> None:
    files = find([digits.normal])
    shown = np.stack([decode(file, RULE).pixels for file in files])
    source = Batches(shown, np.arange(len(shown)), 32, 0, "rotation", torch.device("cpu"))
    config = TrainConfig(size=16, channels=1, width=8, architecture=architecture)
    discriminator = fresh_networks(config, RULE).discriminator
    stage = RotationStage(discriminator, source, 150, config, CPU, few=False)
    losses = [float(stage.step(index)["rotation"]) for index in range(150)]
    assert losses[0] == pytest.approx(math.log(4), abs=0.2)
    assert np.mean(losses[-10:]) < 0.75


def test_turned_images_are_turned_as_they_say() -> None:
    x = torch.arange(18.0).view(2, 1, 3, 3)
    turned, turns = rotate_randomly(x, 0, "turn", 3)
    for image, original, turn in zip(turned, x, turns.tolist(), strict=True):
        assert torch.equal(image, original.rot90(turn, (1, 2)))


def test_generator_waits_for_its_turn() -> None:
    stage = gan("wgan-gp")
    before = copy_of(stage.generator)
    for index in range(4):
        assert "generator" not in stage.step(index)
    weights = dict(stage.generator.named_parameters())
    assert not moved(before, stage.generator) & set(weights)
    assert "generator" in stage.step(4)
    assert moved(before, stage.generator) >= {"0.weight"}


def test_generator_step_leaves_the_discriminator_alone() -> None:
    stage = gan()
    before = copy_of(stage.discriminator)
    stage._generator_step(batches()(0), stage.generator(torch.randn(4, CONFIG.latent_dim)))
    assert not moved(before, stage.discriminator)
    assert all(p.requires_grad for p in stage.discriminator.parameters())


def test_moving_average_follows_the_generator_with_its_half_life() -> None:
    stage = gan()
    with torch.no_grad():
        for value in stage.generator.parameters():
            value.fill_(1.0)
        for value in stage.averages[0].parameters():
            value.fill_(0.0)
    # Far into training; steps of 4 images with a half-life of 100 images: 25 steps halve it.
    for index in range(10_000, 10_025):
        stage._average_step(index)
    assert next(stage.averages[0].parameters()).mean().item() == pytest.approx(0.5, abs=1e-4)


STAGED = [name for name in registry.names("mappings") if registry.load("mappings", name).loss]


@pytest.mark.parametrize("mapping", STAGED)
def test_encoder_training_moves_the_encoder_and_nothing_else(mapping: str) -> None:
    networks = fresh_networks(CONFIG, RULE)
    stage = EncoderStage(
        networks, registry.load("mappings", mapping), batches("encoder"), CONFIG, CPU
    )
    frozen = {"generator": networks.generator, "discriminator": networks.discriminator}
    before = {name: copy_of(module) for name, module in frozen.items()}
    encoder = copy_of(networks.encoder)
    quietly(stage, 5)
    for name, module in frozen.items():
        assert not moved(before[name], module), name
    weights = {key for key, value in networks.encoder.named_parameters() if value.dim() > 1}
    assert weights <= moved(encoder, networks.encoder)


@pytest.mark.parametrize("mapping", STAGED)
def test_encoder_training_lowers_its_loss(mapping: str) -> None:
    networks = fresh_networks(CONFIG, RULE)
    # What the generator itself can make: of noise images nothing can be learned.
    images = sample(networks.generator.eval(), 10, CONFIG.latent_dim, 0, "shown").numpy()
    shown = Batches(images, np.arange(10), 4, 0, "encoder", CPU.device)
    stage = EncoderStage(networks, registry.load("mappings", mapping), shown, CONFIG, CPU)
    losses = [float(stage.step(index)["encoder"]) for index in range(60)]
    assert np.mean(losses[-10:]) < np.mean(losses[:10])


def test_an_epoch_shows_every_image_once_and_epochs_differ() -> None:
    rows = np.array([1, 4, 5, 7, 9, 10, 12, 14])
    source = Batches(
        np.arange(20, dtype=np.float32).reshape(20, 1, 1, 1), rows, 4, 0, "x", torch.device("cpu")
    )
    seen = [source(index).flatten().tolist() for index in range(4)]
    assert sorted(seen[0] + seen[1]) == rows.tolist()
    assert sorted(seen[2] + seen[3]) == rows.tolist()
    assert seen[:2] != seen[2:]
    assert source(0).flatten().tolist() == seen[0]


def test_cut_paste_changes_about_half_of_the_images_inside_a_rectangle() -> None:
    x = torch.arange(200.0).view(200, 1, 1, 1).expand(200, 1, 16, 16)
    given = cut_paste(x, random_stream(0, "corruption"))
    changed = (given != x).flatten(1)
    assert 70 <= changed.any(1).sum() <= 130
    assert changed.sum(1).max() <= 36
    assert torch.equal(given, cut_paste(x, random_stream(0, "corruption")))


def test_every_augmentation_has_a_view_that_changes_images_and_can_be_differentiated() -> None:
    assert set(VIEWS) == set(AUGMENTATIONS)
    x = torch.from_numpy(pixels(32)).requires_grad_(True)
    for name in AUGMENTATIONS:
        seen = discriminator_view(x, [name], random_stream(0, "view"))
        assert seen.shape == x.shape
        assert not torch.equal(seen, x), name
        (gradient,) = torch.autograd.grad(seen.sum(), x)
        assert gradient.abs().sum() > 0
        assert torch.equal(seen, discriminator_view(x, [name], random_stream(0, "view")))


def test_mirrored_images_are_half_of_them_and_brightness_moves_all_pixels_alike() -> None:
    x = torch.from_numpy(pixels(64))
    mirrored = discriminator_view(x, ["flip"], random_stream(0, "view"))
    flipped = (mirrored == x.flip(3)).flatten(1).all(1)
    assert 16 < flipped.sum() < 48
    assert ((mirrored == x).flatten(1).all(1) ^ flipped).all()
    lighter = (discriminator_view(x, ["brightness"], random_stream(0, "view")) - x).flatten(1)
    torch.testing.assert_close(lighter, lighter[:, :1].expand_as(lighter), atol=1e-5, rtol=0)
    assert 0.3 < lighter.abs().max() <= 0.5


@pytest.mark.parametrize(
    ("asked", "few", "views"),
    [
        ("auto", True, ("shift", "cutout")),
        ("auto", False, ()),
        ("none", True, ()),
        ("flip, shift", False, ("shift", "flip")),
    ],
)
def test_the_discriminator_sees_images_with_what_was_asked_for(
    asked: str, few: bool, views: tuple[str, ...]
) -> None:
    config = dataclasses.replace(CONFIG, augment=asked)
    networks, entry = fresh_networks(config, RULE), registry.load("objectives", "bce")
    stage = GanStage(networks, entry, batches(), config, CPU, few=few)
    x = batches()(0)
    assert stage.views == views
    seen = stage._view(3, "real", x)
    assert torch.equal(seen, discriminator_view(x, views, random_stream(0, "view-real", 3)))
    assert torch.equal(seen, x) == (not views)


def test_an_unknown_augmentation_is_refused_with_those_there_are() -> None:
    with pytest.raises(UsageError, match="some of shift, cutout, brightness, flip"):
        TrainConfig(augment="shift,zoom")


def test_samples_are_images_and_repeat() -> None:
    networks: Networks = fresh_networks(CONFIG, RULE).frozen()
    images = sample(networks.generator, 3, CONFIG.latent_dim, 0, "grid")
    assert images.shape == (3, 1, 16, 16)
    assert torch.equal(images, sample(networks.generator, 3, CONFIG.latent_dim, 0, "grid"))
