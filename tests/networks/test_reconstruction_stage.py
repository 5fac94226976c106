"""The stage that tunes a copy of the generator together with the encoder, and its correction."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from torch import Tensor

from anoscan.core.config import TrainConfig
from anoscan.core.runtime import Runtime
from anoscan.images.decode import ImageRule
from anoscan.model.model import fresh_networks
from anoscan.networks.architectures import Networks
from anoscan.networks.augmentation import with_defects
from anoscan.networks.loop import Batches
from anoscan.networks.low_rank import RANK, LowRank
from anoscan.networks.reconstruction_stage import ReconstructionStage
from anoscan.networks.stages import Stages
from anoscan.training.defects import KINDS, defect

CPU = Runtime(torch.device("cpu"), "float32", 1)
CONFIG = TrainConfig(
    size=16, channels=1, latent_dim=8, width=8, batch_size=16, images_shown=32,
    encoder_images_shown=32, reconstruction_images_shown=4800,
)  # fmt: skip
RULE = ImageRule(size=16, channels=1, window=None)


def gradients(n: int, seed: int = 0) -> np.ndarray:
    """Images (n, 1, 16, 16) of two smooth gradients of random strength, in [-0.6, 0.6]."""
    rng = np.random.default_rng(seed)
    line = np.linspace(-1, 1, 16)
    a, b = rng.uniform(-0.3, 0.3, (2, n, 1, 1))
    return (a * line[:, None] + b * line)[:, None].astype(np.float32)


def trained() -> tuple[Networks, ReconstructionStage]:
    networks = fresh_networks(CONFIG, RULE)
    images = gradients(200)
    stages = Stages(images, np.arange(200), CONFIG, CPU, few=True)
    planned = stages.reconstruction(networks)
    assert planned is not None
    for index in range(planned.steps):
        planned.stage.step(index)
    return networks, planned.stage


def error(networks: Networks, images: np.ndarray) -> float:
    x = torch.from_numpy(images)
    with torch.no_grad():
        missed = (networks.frozen().reconstruct(x) - x).square().mean()
    return float(missed / x.var(0).mean())


def test_the_stage_leaves_generator_and_discriminator_as_they_are() -> None:
    networks = fresh_networks(CONFIG, RULE)
    kept = {
        name: {key: value.clone() for key, value in network.state_dict().items()}
        for name, network in networks.parts().items()
    }
    stage = ReconstructionStage(
        networks,
        Batches(gradients(20), np.arange(20), 16, 0, "reconstruction", CPU.device),
        5,
        CONFIG,
        CPU,
    )
    stage.step(0)
    for name in ("generator", "discriminator"):
        now = networks.parts()[name].state_dict()
        assert all(torch.equal(value, now[key]) for key, value in kept[name].items()), name
    assert not torch.equal(
        next(networks.encoder.parameters()), next(iter(kept["encoder"].values()))
    )
    assert networks.decoder is not None


def test_the_stage_reconstructs_unseen_images_and_the_correction_does_more() -> None:
    networks, stage = trained()
    unseen = gradients(100, seed=1)
    before = error(networks, unseen)
    stage.correct()
    after = error(networks, unseen)
    assert before < 0.5
    assert after < 0.5 * before


def test_a_defect_is_repaired_and_not_repeated() -> None:
    networks, stage = trained()
    stage.correct()
    clean, rng = gradients(60, seed=2), np.random.default_rng(0)
    left = changed = 0.0
    for number, image in enumerate(clean):
        kind = list(KINDS)[number % len(KINDS)]
        found = defect(kind, image, clean[number - 1], 5, float(clean.std()), 16, rng)
        if found is None:
            continue
        query, mask = found
        with torch.no_grad():
            twin = networks.frozen().reconstruct(torch.from_numpy(query)[None])[0].numpy()
        left += float(np.square(twin - image)[:, mask].sum())
        changed += float(np.square(query - image)[:, mask].sum())
    assert left < 0.15 * changed


def test_a_variational_encoder_learns_in_the_stage_too() -> None:
    chosen = dataclasses.replace(CONFIG, encoder="vae")
    networks = fresh_networks(chosen, RULE)
    planned = Stages(gradients(50), np.arange(50), chosen, CPU, few=True).reconstruction(networks)
    assert planned is not None
    losses = [float(planned.stage.step(index)["error"]) for index in range(60)]
    assert np.mean(losses[-10:]) < np.mean(losses[:10])


def test_without_a_length_there_is_no_stage() -> None:
    chosen = dataclasses.replace(CONFIG, reconstruction_images_shown=0)
    networks = fresh_networks(chosen, RULE)
    assert (
        Stages(gradients(9), np.arange(9), chosen, CPU, few=True).reconstruction(networks) is None
    )
    assert networks.decoder is None
    x = torch.from_numpy(gradients(2))
    with torch.no_grad():
        networks.frozen()
        assert torch.equal(networks.reconstruct(x), networks.generator(networks.encoder(x)))


@pytest.mark.parametrize("channels", [1, 3])
def test_most_images_get_a_defect_and_draws_alone_decide_which(channels: int) -> None:
    x = torch.from_numpy(gradients(64)).repeat(1, channels, 1, 1)

    def draw(seed: int) -> Tensor:
        return with_defects(x, torch.Generator().manual_seed(seed))

    changed = (draw(0) != x).flatten(1).any(1).float().mean().item()
    assert 0.5 < changed < 1
    assert torch.equal(draw(0), draw(0))
    assert not torch.equal(draw(0), draw(1))
    assert draw(0).abs().max() <= 1


def test_a_correction_follows_brightness_and_limits_a_bright_spot() -> None:
    rng = torch.Generator().manual_seed(0)
    levels = torch.rand(300, 1, generator=rng) - 0.5
    residuals = levels.expand(-1, 64).clone()
    correction = LowRank(1, 8).fit(residuals, residuals, seed=0)
    x_hat = torch.zeros(2, 1, 8, 8)
    lighter = torch.full((1, 1, 8, 8), 0.2)
    spotted = lighter.clone()
    spotted[0, 0, :4, :4] = 1.0
    twins = correction(torch.cat([lighter, spotted]), x_hat)
    assert torch.allclose(twins[0], lighter[0], atol=0.06)
    assert torch.allclose(twins[1], twins[0], atol=0.06)  # the spot is hardly followed at all


def test_a_correction_of_a_large_image_stays_small_and_smooth() -> None:
    residuals = torch.rand(40, 3 * 64 * 64, generator=torch.Generator().manual_seed(0)) - 0.5
    correction = LowRank(3, 160).fit(residuals, residuals, seed=0)
    assert correction.down.shape == (3 * 64 * 64, RANK)
    x = torch.rand(2, 3, 160, 160)
    assert correction(x, torch.zeros_like(x)).shape == x.shape


def test_a_correction_of_fewer_images_than_directions_is_finite() -> None:
    residuals = torch.rand(5, 64, generator=torch.Generator().manual_seed(0))
    correction = LowRank(1, 8).fit(residuals, residuals, seed=0)
    assert all(torch.isfinite(value).all() for value in correction.state_dict().values())
    still = LowRank(1, 8).fit(torch.zeros(5, 64), torch.zeros(5, 64), seed=0)
    x = torch.rand(1, 1, 8, 8)
    assert torch.isfinite(still(x, torch.zeros_like(x))).all()
