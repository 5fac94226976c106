"""Kinds of encoder, and the ways in which they learn."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.distributions import Normal, kl_divergence

from anoscan.core import registry
from anoscan.core.config import TrainConfig
from anoscan.core.errors import TrainingInterrupted, UsageError
from anoscan.core.runtime import Runtime, seeded
from anoscan.detector import Detector
from anoscan.images.decode import ImageRule
from anoscan.model.model import fresh_networks
from anoscan.networks import encoder_stage
from anoscan.networks.architectures import Networks, Shape
from anoscan.networks.encoder_stage import EncoderStage
from anoscan.networks.encoders import ae, vae
from anoscan.networks.gan_stage import GanStage
from anoscan.networks.joint_stage import JointStage, PairDiscriminator, pack, unpack
from anoscan.networks.loop import Batches, Position, load_state_tensors, run, state_tensors
from anoscan.networks.objectives import squared_gradient_norm
from tests.conftest import Digits

CPU = Runtime(torch.device("cpu"), "float32", 1)
OF_PAIRS = sorted({*registry.names("objectives")} - {"wgan"})
BASE = {"size": 16, "latent_dim": 4, "width": 4, "batch_size": 4, "images_shown": 8}


def config(channels: int = 1, **settings: object) -> TrainConfig:
    return TrainConfig.from_dict(BASE | {"channels": channels} | settings)


def networks(chosen: TrainConfig) -> Networks:
    channels = chosen.channels or 1
    return fresh_networks(chosen, ImageRule(size=16, channels=channels, window=None))


def batches(channels: int = 1) -> Batches:
    pixels = np.random.default_rng(0).uniform(-1, 1, (10, channels, 16, 16)).astype(np.float32)
    return Batches(pixels, np.arange(10), 4, 0, "x", torch.device("cpu"))


def copy_of(network: nn.Module) -> dict[str, Tensor]:
    return {key: value.clone() for key, value in network.state_dict().items()}


def moved(before: dict[str, Tensor], network: nn.Module) -> set[str]:
    after = network.state_dict()
    return {key for key, value in before.items() if not torch.equal(value, after[key])}


def joint(channels: int = 1, *, few: bool = False, **settings: object) -> JointStage:
    chosen = config(channels, mapping="bigan", **settings)
    objective = registry.load("objectives", chosen.objective)
    return JointStage(networks(chosen), objective, batches(channels), chosen, CPU, few=few)


@pytest.mark.parametrize("architecture", registry.names("architectures"))
def test_the_plain_encoder_is_the_trunk_itself_so_that_older_models_load(architecture: str) -> None:
    trunk = registry.load("architectures", architecture).encoder(Shape(16, 1, 4, 4))
    built = networks(config(architecture=architecture)).encoder
    assert {k: v.shape for k, v in built.state_dict().items()} == {
        k: v.shape for k, v in trunk.state_dict().items()
    }


@pytest.mark.parametrize("architecture", registry.names("architectures"))
@pytest.mark.parametrize("encoder", registry.names("encoders"))
@pytest.mark.parametrize("channels", [1, 3])
def test_every_encoder_gives_one_latent_an_image_with_every_architecture(
    architecture: str, encoder: str, channels: int
) -> None:
    chosen = config(channels, architecture=architecture, encoder=encoder)
    network = networks(chosen).encoder.eval()
    x = torch.randn(3, channels, 16, 16)
    assert network(x).shape == (3, 4)
    entry = registry.load("encoders", encoder)
    z, penalty = entry.encode(network, x, torch.randn(3, 4))
    assert z.shape == (3, 4)
    assert penalty.shape == ()


def test_the_variational_encoder_scores_by_its_mean_and_learns_from_samples_around_it() -> None:
    network = networks(config(encoder="vae")).encoder.eval()
    assert isinstance(network, vae.Gaussian)
    x = torch.randn(1, 1, 16, 16)
    mean, log_variance = network.moments(x)
    assert torch.equal(network(x), mean)
    noise = torch.randn(20_000, 4, generator=torch.Generator().manual_seed(0))
    z, _ = vae.encode(network, x.expand(20_000, -1, -1, -1), noise)
    deviation = (0.5 * log_variance[0]).exp()
    assert torch.allclose(z.mean(0), mean[0], atol=0.05 * deviation.max().item())
    assert torch.allclose(z.std(0), deviation, rtol=0.05)
    assert torch.equal(vae.encode(network, x, torch.zeros(1, 4))[0], mean)


def test_the_divergence_is_that_of_a_gaussian_from_the_prior() -> None:
    mean, log_variance = torch.randn(5, 4), torch.randn(5, 4)
    normal = Normal(mean, (0.5 * log_variance).exp())
    expected = kl_divergence(normal, Normal(0.0, 1.0)).mean()
    assert vae.divergence(mean, log_variance).item() == pytest.approx(expected.item(), rel=1e-5)
    assert vae.divergence(torch.zeros(2, 4), torch.zeros(2, 4)).item() == 0


def test_training_a_variational_encoder_pays_for_leaving_the_prior(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def divergence_after(weight: float) -> float:
        monkeypatch.setattr(vae, "WEIGHT", weight)
        chosen = config(encoder="vae", encoder_images_shown=160)
        made = networks(chosen)
        stage = EncoderStage(made, registry.load("mappings", "izi"), batches(), chosen, CPU)
        for index in range(40):
            stage.step(index)
        assert isinstance(made.encoder, vae.Gaussian)
        with torch.no_grad():
            return vae.divergence(*made.encoder.eval().moments(batches()(0))).item()

    assert divergence_after(1.0) < 0.5 * divergence_after(0.0)


class Given(nn.Module):
    """Latents that do not ask what the image is."""

    def __init__(self, z: Tensor) -> None:
        super().__init__()
        self.z = nn.Parameter(z)

    def forward(self, x: Tensor) -> Tensor:
        return self.z.expand(len(x), -1)


def test_a_plain_latent_costs_nothing_until_it_is_twice_as_long_as_one_of_the_prior() -> None:
    lengths = torch.tensor([0.5, 1.9, 3.0])  # root mean squares
    network = Given(lengths[:, None].expand(3, 64))
    z, penalty = ae.encode(network, torch.zeros(3, 1, 8, 8), torch.zeros(3, 64))
    penalty.backward()
    assert torch.equal(z, network.z)
    assert penalty.item() == pytest.approx(ae.WEIGHT * (3.0**2 - ae.LIMIT) / 3)
    assert network.z.grad is not None
    assert (network.z.grad[:2] == 0).all()
    assert (network.z.grad[2] > 0).all()


@pytest.mark.parametrize("weight", [0.0, ae.WEIGHT])
def test_latents_come_back_from_where_the_generator_says_nothing(
    weight: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ae, "WEIGHT", weight)
    chosen = config(encoder_images_shown=800)
    made = networks(chosen)
    made.encoder = Given(torch.full((1, 4), 30.0))
    monkeypatch.setattr(encoder_stage, "LEARNING_RATE", 1.0)
    made.generator = nn.Sequential(nn.Linear(4, 256), nn.Hardtanh(), nn.Unflatten(1, (1, 16, 16)))
    nn.init.ones_(made.generator[0].weight)
    stage = EncoderStage(made, registry.load("mappings", "izi"), batches(), chosen, CPU)
    for index in range(60):
        stage.step(index)
    length = float(made.encoder.z.detach().square().mean())
    assert (length < 2 * ae.LIMIT) == bool(weight)
    assert weight or length == 900.0


@pytest.mark.parametrize("mapping", ["izi", "ziz"])
@pytest.mark.parametrize("channels", [1, 3])
def test_losses_are_the_formulas_of_the_paper(mapping: str, channels: int) -> None:
    made = networks(config(channels)).frozen()
    x, z = torch.randn(3, channels, 16, 16), torch.randn(3, 4)
    z_hat = torch.randn(3, 4)
    expected = {
        "izi": (x - made.generator(z_hat)).square().sum() / (3 * channels * 256),
        "ziz": (z - z_hat).square().sum() / (3 * 4),
    }[mapping]
    loss = registry.load("mappings", mapping).loss(made, x, z, z_hat)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)


def test_only_izi_f_asks_the_discriminator() -> None:
    made = networks(config()).frozen()
    x, z, z_hat = torch.randn(3, 1, 16, 16), torch.randn(3, 4), torch.randn(3, 4)

    def losses() -> dict[str, float]:
        names = ("izi_f", "izi", "ziz")
        return {n: registry.load("mappings", n).loss(made, x, z, z_hat).item() for n in names}

    before = losses()
    with torch.no_grad():
        for index, weights in enumerate(made.discriminator.parameters()):
            weights.add_(0.3 * (-1) ** index)
    after = losses()
    assert {name for name in before if before[name] != after[name]} == {"izi_f"}


def test_ziz_reads_no_image() -> None:
    def no_images(index: int) -> Tensor:
        raise AssertionError("an image was read")

    chosen = config(mapping="ziz", encoder_images_shown=400)
    made = networks(chosen)
    stage = EncoderStage(made, registry.load("mappings", "ziz"), no_images, chosen, CPU)
    losses = [float(stage.step(index)["encoder"]) for index in range(100)]
    assert np.mean(losses[-10:]) < 0.7 * np.mean(losses[:10])


@pytest.mark.parametrize(("channels", "side"), [(1, 16), (3, 16), (3, 15)])
def test_pairs_come_apart_as_they_went_together(channels: int, side: int) -> None:
    x, z = torch.randn(5, channels, side, side), torch.randn(5, 7)
    apart = unpack(pack(x, z), channels, 7)
    assert torch.equal(apart[0], x)
    assert torch.equal(apart[1], z)


@pytest.mark.parametrize("channels", [1, 3])
def test_the_pair_discriminator_looks_at_both_and_its_penalty_covers_both(channels: int) -> None:
    made = networks(config(channels))
    with seeded(0, "test"):
        pairs = PairDiscriminator(made.discriminator, channels, 4)
    x, z = torch.randn(3, channels, 16, 16), torch.randn(3, 4)
    whole = squared_gradient_norm(pairs, pack(x, z))
    x.requires_grad_(True)
    z.requires_grad_(True)
    gradients = torch.autograd.grad(pairs(pack(x, z)).sum(), (x, z))
    squares = [gradient.flatten(1).square().sum(1) for gradient in gradients]
    assert all((square > 0).all() for square in squares)
    torch.testing.assert_close(whole, squares[0] + squares[1])


@pytest.mark.parametrize("objective", OF_PAIRS)
@pytest.mark.parametrize(
    "architecture", sorted({*registry.names("architectures")} - {"progressive"})
)
@pytest.mark.parametrize("encoder", registry.names("encoders"))
def test_every_weight_moves_when_pairs_are_judged(
    objective: str, architecture: str, encoder: str
) -> None:
    stage = joint(objective=objective, architecture=architecture, encoder=encoder, few=True)
    before = {name: copy_of(module) for name, module in stage.modules.items()}
    for index in range(10):
        stage.step(index)
    for name, module in stage.modules.items():
        weights = {key for key, value in module.named_parameters() if value.dim() > 1}
        heads = {key for key in weights if "head" in key.split(".")[:2] or "turn_head" in key}
        assert weights - heads <= moved(before[name], module), name


def test_generator_and_encoder_pull_against_the_discriminator_of_pairs() -> None:
    stage = joint()
    x, z = batches()(0), torch.randn(4, 4)

    def realness() -> tuple[float, float]:
        with torch.no_grad():
            real = stage.pairs(pack(x, stage.encoder(x)))
            return real.mean().item(), stage.pairs(pack(stage.generator(z), z)).mean().item()

    before, judge = realness(), copy_of(stage.pairs)
    for _ in range(20):
        pairs = pack(x, stage.encoder(x)), pack(stage.generator(z), z)
        stage._players_step(*pairs, missed=torch.zeros(()))
    after = realness()
    assert after[0] < before[0]
    assert after[1] > before[1]
    assert not moved(judge, stage.pairs)
    with torch.no_grad():
        real, fake = pack(x, stage.encoder(x)), pack(stage.generator(z), z)
    players = [copy_of(stage.generator), copy_of(stage.encoder)]
    for index in range(20):
        stage._discriminator_step(index, real, fake)
    for before_step, network in zip(players, (stage.generator, stage.encoder), strict=True):
        assert not moved(before_step, network)
    final = realness()
    assert final[0] - final[1] > after[0] - after[1]


@pytest.mark.parametrize("objective", OF_PAIRS)
def test_games_of_pairs_match_variety_as_games_of_images_do(objective: str) -> None:
    stage = joint(objective=objective)
    x, z = batches()(0), torch.randn(4, 4)
    pairs = pack(x, stage.encoder(x)), pack(stage.generator(z), z)
    found = stage._players_step(*pairs, missed=torch.zeros(()))
    assert ("variety" in found) == (stage.objective.penalty is None)


def test_every_part_that_judges_pairs_has_spectral_norm_one_under_hinge() -> None:
    stage = joint(objective="hinge")
    draw = torch.Generator().manual_seed(0)
    for index in range(60):  # one step of power iteration each
        pairs = [pack(batches()(0), torch.randn(4, 4, generator=draw)) for _ in "ab"]
        stage._discriminator_step(index, *pairs)
    for part in (stage.pairs.latent, stage.pairs.pair, stage.pairs.trunk.blocks):
        for layer in part.modules():
            if isinstance(layer, torch.nn.Conv2d | torch.nn.Linear):
                norm = torch.linalg.matrix_norm(layer.weight.flatten(1), ord=2).item()
                assert norm == pytest.approx(1, abs=0.1)


def test_the_encoder_inverts_a_generator_that_does_not_follow_though_the_pairs_look_alike() -> None:
    stage = joint()
    x = batches()(0)

    def missed() -> torch.Tensor:
        return stage._missed(x, stage.encoder(x))

    pairs = (
        pack(x, stage.encoder(x)).detach(),
        pack(stage.generator(torch.zeros(4, 4)), torch.zeros(4, 4)).detach(),
    )
    before, players = missed().item(), [copy_of(stage.generator), copy_of(stage.encoder)]
    for _ in range(20):
        stage._players_step(*pairs, missed())
    assert missed().item() < before
    assert not moved(players[0], stage.generator)  # nor the statistics that it will score with
    assert moved(players[1], stage.encoder)
    assert stage.generator.training


def test_in_a_step_of_pairs_the_generator_still_plays() -> None:
    stage = joint()
    before = copy_of(stage.generator)
    stage.step(0)
    weights = {key for key, value in stage.generator.named_parameters() if value.dim() > 1}
    assert weights <= moved(before, stage.generator)


def test_what_scores_after_the_game_of_pairs_are_the_averages_of_all_three() -> None:
    stage = joint()
    for index in range(3):
        stage.step(index)
    trained = stage.trained()
    live = {"generator": stage.generator, "encoder": stage.encoder}
    for name, network in live.items():
        assert moved(copy_of(network), getattr(trained, name)), name
    assert moved(copy_of(stage.pairs.trunk), trained.discriminator)
    assert trained.encoder is stage.encoder_average


def test_the_state_of_a_game_of_pairs_comes_back_with_its_optimisers() -> None:
    whole, half, resumed = joint(), joint(), joint()
    for index in range(9):
        whole.step(index)
    for index in range(5):
        half.step(index)
    load_state_tensors(resumed, {k: v.clone() for k, v in state_tensors(half).items()})
    for index in range(5, 9):
        resumed.step(index)
    for name, module in whole.modules.items():
        assert not moved(copy_of(module), resumed.modules[name]), name


@pytest.mark.parametrize(
    ("encoder", "mapping"),
    [
        (encoder, mapping)
        for encoder in registry.names("encoders")
        for mapping in registry.names("mappings")
        if (encoder, mapping) != ("vae", "ziz")
    ],
)
@pytest.mark.parametrize("channels", [1, 3])
def test_every_encoder_and_mapping_trains_scores_and_loads(
    encoder: str,
    mapping: str,
    channels: int,
    few: Digits,
    quick: dict[str, int],
    tmp_path: Path,
) -> None:
    settings = quick | {"images_shown": 160, "rotation_images_shown": 0}
    settings["encoder_images_shown"] = 0 if mapping == "bigan" else 64
    path = tmp_path / "m.safetensors"
    trained = Detector.train(
        few.normal, path=path, encoder=encoder, mapping=mapping, channels=channels, **settings
    )
    loaded = Detector.load(path)
    report, again = (d.score(few.queries, score="paper") for d in (trained, loaded))
    assert [i.score for i in report.images] == [i.score for i in again.images]
    assert np.isfinite([i.score for i in report.images]).all()
    assert trained.report is not None
    assert (trained.report.model.encoder, trained.report.model.mapping) == (encoder, mapping)
    assert (trained.report.images_shown["encoder"] == 0) == (mapping == "bigan")


@pytest.mark.parametrize("stop_in", ["gan", "rotation"])
@pytest.mark.parametrize("objective", ["nonsaturating", "wgan-gp"])
def test_a_resumed_game_of_pairs_ends_with_the_same_bytes(
    stop_in: str,
    objective: str,
    few: Digits,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    settings = {"images_shown": 320, "width": 8, "mapping": "bigan", "encoder": "vae"}
    settings |= {"objective": objective, "rotation_images_shown": 320}

    def train(name: str, *, resume: bool = False) -> str:
        path = tmp_path / f"{name}.safetensors"
        return Detector.train(
            few.normal, name="run", path=path, resume=resume, **settings
        ).reference.sha256

    def stop_early(stage: GanStage, **arguments: object) -> None:
        position = arguments["position"]
        assert isinstance(position, Position)
        if stage.name == stop_in:
            arguments["stopping"] = lambda: position.step >= 3
        run(stage, **arguments)  # type: ignore[arg-type]

    whole = train("whole")
    with monkeypatch.context() as patch:
        patch.setattr("anoscan.networks.stages.run", stop_early)
        with pytest.raises(TrainingInterrupted):
            train("resumed")
    assert train("resumed", resume=True) == whole


@pytest.mark.parametrize(
    ("settings", "advice"),
    [
        ({"encoder": "vae", "mapping": "ziz"}, "--encoder ae"),
        ({"mapping": "bigan", "encoder_images_shown": 100}, "drop --encoder-images-shown"),
        ({"mapping": "bigan", "size": 256}, "auto is from --size 256 on"),
        ({"mapping": "bigan", "objective": "wgan"}, "use --objective wgan-gp, or --mapping izi_f"),
        ({"mapping": "izi", "encoder_images_shown": 0}, "--encoder-images-shown must be"),
        ({"encoder": "gan"}, "--encoder must be one of ae, vae"),
        ({"mapping": "zizi"}, "--mapping must be one of bigan, izi, izi_f, ziz"),
    ],
)
def test_settings_that_do_not_go_together_are_refused_with_what_to_change(
    settings: dict[str, object], advice: str
) -> None:
    with pytest.raises(UsageError, match=advice):
        TrainConfig.from_dict(settings)
