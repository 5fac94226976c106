"""Latents found by gradient descent, and the scores that the papers make of them."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from torch import Tensor

from anoscan.cli.app import app
from anoscan.core import registry
from anoscan.core.config import TrainConfig
from anoscan.core.errors import UsageError
from anoscan.core.runtime import exact_float32
from anoscan.detector import Detector
from anoscan.images.decode import ImageRule, decode
from anoscan.images.files import find
from anoscan.model.model import fresh_networks
from anoscan.networks.architectures import Networks
from anoscan.scoring import search as search_module
from anoscan.scoring.choices import Inversion, ScoreRequest
from anoscan.scoring.search import LANES, search
from tests.conftest import Digits

SEARCH = Inversion("search", steps=40)
REFINE = Inversion("refine", steps=20)


def queries(detector: Detector, digits: Digits, n: int) -> Tensor:
    files = find([digits.queries])[:n]
    rule = detector.model.rule
    return torch.from_numpy(np.stack([decode(file, rule).pixels for file in files]))


def small(channels: int, architecture: str = "dcgan") -> Networks:
    settings = {"size": 16, "channels": channels, "latent_dim": 4, "width": 4}
    config = TrainConfig.from_dict(settings | {"architecture": architecture})
    rule = ImageRule(size=16, channels=channels, window=None)
    return fresh_networks(config, rule).frozen()


def noise(n: int, channels: int) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.rand(n, channels, 16, 16, generator=generator) * 2 - 1


@pytest.fixture(scope="module")
def plain(few: Digits, tmp_path_factory: pytest.TempPathFactory) -> Detector:
    """A detector whose discriminator is as the game left it."""
    home = tmp_path_factory.mktemp("plain")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ANOSCAN_HOME", str(home))
        return Detector.train(
            few.normal,
            path=home / "plain.safetensors",
            images_shown=1280,
            rotation_images_shown=0,
            width=8,
        )


def test_residual_and_loss_fall_over_the_steps_of_a_search(
    trained: Detector, digits: Digits
) -> None:
    with exact_float32():
        found = search(trained.model.networks, queries(trained, digits, 24), SEARCH)
    assert found.loss.shape == found.residual.shape == (41, 24)
    for column in (found.loss, found.residual):
        means = column.mean(1)
        assert means[-1] < 0.7 * means[0]
        assert means[0] > means[10] > means[40]
    assert (found.loss[-1] < found.loss[0]).all()


def test_refining_never_makes_a_reconstruction_worse_and_makes_most_better(
    trained: Detector, digits: Digits
) -> None:
    networks, x = trained.model.networks, queries(trained, digits, 24)
    with exact_float32():
        found = search(networks, x, REFINE)
        again = search(networks, x, Inversion("refine", steps=1))
        x_hat = networks.mirror[1](found.z)
        f, f_hat = (networks.discriminator.features(y)[-1] for y in (x, x_hat))
    residual = (x - x_hat).abs().flatten(1).double().sum(1)
    loss = 0.9 * residual + 0.1 * (f - f_hat).abs().flatten(1).double().sum(1)
    assert torch.allclose(loss, found.loss.min(0).values, rtol=1e-5)
    assert (found.loss.min(0).values <= found.loss[0]).all()
    assert loss.mean() < 0.9 * found.loss[0].mean()
    assert torch.allclose(again.loss[0], found.loss[0])


@pytest.mark.parametrize("mapping", ["search", "refine"])
def test_a_latent_is_the_same_to_the_last_bit_in_any_company(
    mapping: str, plain: Detector, digits: Digits
) -> None:
    how = Inversion(mapping, steps=15)
    networks, x = plain.model.networks, queries(plain, digits, LANES + 3)
    with exact_float32():
        whole = search(networks, x, how).z
        backwards = search(networks, x.flip(0), how).z
        alone = torch.cat([search(networks, x[i : i + 1], how).z for i in (0, 17)])
        few = search(networks, x[5:10], how).z
    assert torch.equal(backwards.flip(0), whole)
    assert torch.equal(alone, whole[[0, 17]])
    assert torch.equal(few, whole[5:10])


@pytest.mark.parametrize(("side", "lanes"), [(28, 32), (32, 32), (64, 16), (128, 8), (256, 4)])
def test_fewer_large_images_are_searched_at_a_time(
    side: int, lanes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[int] = []

    def descend(networks: Networks, x: Tensor, how: Inversion) -> search_module.Found:
        given.append(len(x))
        return search_module.Found(x.new_zeros(len(x), 4), *x.new_zeros(2, 1, len(x)))

    monkeypatch.setattr(search_module, "_descend", descend)
    found = search(small(1), torch.zeros(lanes + 1, 1, side, side), SEARCH)
    assert given == [lanes, lanes]
    assert len(found.z) == lanes + 1


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("architecture", registry.names("architectures"))
def test_any_gan_can_be_searched_and_only_the_seed_decides_the_start(
    channels: int, architecture: str
) -> None:
    networks, x = small(channels, architecture), noise(3, channels)

    def found(seed: int) -> Tensor:
        return search(networks, x, Inversion("search", steps=15, seed=seed)).loss

    first = found(0)
    assert torch.equal(first, found(0))
    assert not torch.equal(first, found(1))
    # Of noise, which no generator can make: on average, not for every image.
    assert first[-1].mean() < first[0].mean()


def test_a_search_needs_no_encoder_and_keeps_no_graph(trained: Detector, digits: Digits) -> None:
    networks, x = small(1), noise(2, 1)
    first = search(networks, x, SEARCH)
    with torch.no_grad():
        for weights in networks.encoder.parameters():
            weights.zero_()
    assert torch.equal(search(networks, x, SEARCH).z, first.z)
    assert not first.z.requires_grad
    assert not first.loss.requires_grad
    for network in networks.parts().values():
        assert all(weights.grad is None for weights in network.parameters())


@pytest.mark.parametrize("channels", [1, 3])
def test_a_search_minimises_the_formulas_of_the_papers(channels: int) -> None:
    networks, x = small(channels), noise(2, channels)
    for kind in ("feature", "fool"):
        found = search(networks, x, Inversion("search", discrimination_loss=kind, steps=3))
        x_hat = networks.mirror[1](found.z)
        f, f_hat = (networks.discriminator.features(y)[-1] for y in (x, x_hat))
        residual = (x - x_hat).abs().sum((1, 2, 3))
        discrimination = {
            "feature": (f - f_hat).abs().sum((1, 2, 3)),
            "fool": -networks.discriminator(x_hat).sigmoid().log(),
        }[kind]
        expected = 0.9 * residual + 0.1 * discrimination
        torch.testing.assert_close(found.loss[-1].float(), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("score", ["paper", "anogan"])
def test_published_scores_are_the_formulas_on_raw_networks(
    score: str, plain: Detector, few: Digits
) -> None:
    networks, x = plain.model.networks, queries(plain, few, 4)
    with exact_float32():
        x_hat = networks.reconstruct(x)
        f, f_hat = (networks.discriminator.features(y)[-1] for y in (x, x_hat))
    pixels, features = x[0].numel(), f[0].numel()
    expected = {
        "paper": (x - x_hat).square().sum((1, 2, 3)) / pixels
        + 1.0 * (f - f_hat).square().sum((1, 2, 3)) / features,
        "anogan": (1 - 0.1) * (x - x_hat).abs().sum((1, 2, 3))
        + 0.1 * (f - f_hat).abs().sum((1, 2, 3)),
    }[score]
    found = list(plain.stream(find([few.queries])[:4], ScoreRequest(score)))
    values = [item.score for item in found]  # type: ignore[union-attr]
    assert values == pytest.approx(expected.tolist(), rel=1e-4)


def test_a_searched_score_is_the_loss_that_was_reached(plain: Detector, few: Digits) -> None:
    files = find([few.queries])[:5]
    with exact_float32():
        loss = search(plain.model.networks, queries(plain, few, 5), SEARCH).loss[-1]
    for batch_size in (64, 2):
        found = plain.stream(files, ScoreRequest("anogan", SEARCH, batch_size=batch_size))
        values = [item.score for item in found]  # type: ignore[union-attr]
        assert values == pytest.approx(loss.tolist(), rel=1e-5)


def test_the_default_score_does_not_ask_for_the_latent_and_residuals_do(
    plain: Detector, trained: Detector, digits: Digits
) -> None:
    files = find([digits.queries])[:6]
    for detector in (plain, trained):
        by_encoder = list(detector.stream(files))
        searched = list(detector.stream(files, ScoreRequest(inversion=SEARCH)))
        for one, other in zip(by_encoder, searched, strict=True):
            assert one.score == other.score  # type: ignore[union-attr]
            assert one.terms["pixel"] != other.terms["pixel"]  # type: ignore[union-attr]


def test_a_threshold_that_was_set_with_the_encoder_says_so_where_it_matters(
    trained: Detector,
) -> None:
    for score in ("paper", "anogan"):
        for how in (SEARCH, REFINE):
            warning = trained.threshold(ScoreRequest(score, Inversion.of(how))).warning or ""
            assert f"with the encoder mapping: with --mapping {how.mapping}" in warning
        assert "mapping" not in (trained.threshold(ScoreRequest(score)).warning or "")
    assert "mapping" not in (trained.threshold(ScoreRequest(inversion=SEARCH)).warning or "")
    both = trained.threshold(ScoreRequest("paper", SEARCH, 1e-4)).warning or ""
    assert "cannot promise" in both
    assert "encoder mapping" in both


def test_fooling_needs_the_discriminator_of_the_game(
    trained: Detector, plain: Detector, few: Digits
) -> None:
    fool = Inversion("search", discrimination_loss="fool", steps=20)
    with pytest.raises(UsageError, match="--discrimination-loss fool") as error:
        trained.score(few.queries, mapping=fool)
    assert "--rotation-images-shown 0" in str(error.value.hint)
    files = find([few.queries])[:3]
    by_word = list(plain.stream(files, ScoreRequest("paper", fool)))
    by_feature = list(plain.stream(files, ScoreRequest("paper", Inversion("search", steps=20))))
    for one, other in zip(by_word, by_feature, strict=True):
        assert one.score != other.score  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"mapping": "telepathy"}, "--mapping must be one of encoder, search, refine"),
        ({"mapping": "search", "discrimination_loss": "l2"}, "--discrimination-loss must be"),
        ({"mapping": "search", "steps": 0}, "--search-steps must be at least 1"),
        ({"steps": 5}, "need --mapping search or refine"),
        ({"discrimination_loss": "fool"}, "need --mapping search or refine"),
    ],
)
def test_options_of_a_search_are_checked(settings: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        Inversion(**settings)  # type: ignore[arg-type]


def test_lengths_are_the_papers_unless_given() -> None:
    assert Inversion("search").length == 500
    assert Inversion("refine").length == 50
    assert Inversion("search", steps=7).length == 7


@pytest.mark.parametrize("command", ["score", "eval"])
def test_the_command_line_searches_and_warns(
    command: str, plain: Detector, few: Digits, capsys: pytest.CaptureFixture[str]
) -> None:
    target = [str(few.queries)] if command == "score" else ["--labels", str(few.labels)]
    options = ["--model", plain.reference.path, "--json", "--score", "anogan"]
    searching = ["--mapping", "search", "--search-steps", "3", "--seed", "1"]
    app([command, *target, *options, *searching], standalone_mode=False)
    out, err = capsys.readouterr()
    document = json.loads(out)
    assert document["mapping"] == "search"
    assert document["search"] == {"steps": 3, "discrimination_loss": "feature", "seed": 1}
    assert "--mapping search they are no promise" in err
    assert "made of other terms" not in err
    app([command, *target, *options], standalone_mode=False)
    out, err = capsys.readouterr()
    assert (json.loads(out)["mapping"], json.loads(out)["search"]) == ("encoder", None)
    assert "no promise" not in err
    app([command, *target, *options[:3], *searching], standalone_mode=False)
    out, err = capsys.readouterr()
    # A search that no part of the score asks for is not done without a word.
    assert "The calibrated score is made of other terms" in err


def test_evaluation_by_search_measures_searched_residuals(plain: Detector, few: Digits) -> None:
    by_encoder = plain.evaluate(few.labels)
    searched = plain.evaluate(few.labels, mapping=Inversion("search", steps=10))
    assert (by_encoder.mapping, searched.mapping) == ("encoder", "search")
    assert by_encoder.terms["density"] == searched.terms["density"]
    assert by_encoder.terms["anogan"] != searched.terms["anogan"]
    assert searched.warning is None
