"""The terms on the principal components that a model stores: `pca`, `nearest` and `mixture`."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.decomposition import PCA
from sklearn.metrics import roc_auc_score
from sklearn.mixture import GaussianMixture
from sklearn.neighbors import NearestNeighbors
from torch import Tensor

from anoscan.core.config import TrainConfig
from anoscan.core.errors import ModelError
from anoscan.core.runtime import Runtime
from anoscan.detector import Detector
from anoscan.images.decode import ImageRule
from anoscan.model import file as model_file
from anoscan.model.model import Model, fresh_networks
from anoscan.model.patch_test import term_weights
from anoscan.model.score_of_terms import Scorer
from anoscan.networks.architectures import Networks
from anoscan.scoring import fitting, measure
from anoscan.scoring.baselines import Baselines
from anoscan.scoring.calibration import p_values
from anoscan.scoring.terms import Evidence, Tensors, mixture, nearest, pca
from tests.conftest import Digits

KINDS, SIDE = 6, 16


def pictures(n: int, seed: int, channels: int = 1) -> Tensor:
    """Pictures of a few kinds, and noise."""
    shared = torch.Generator().manual_seed(5)
    kinds = torch.rand(KINDS, channels, SIDE, SIDE, generator=shared) - 0.5
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randint(KINDS, (n,), generator=generator)
    return kinds[drawn] + 0.02 * torch.randn(n, channels, SIDE, SIDE, generator=generator)


def evidence(x: Tensor) -> Evidence:
    return Evidence(networks(x.shape[1]), x)


def networks(channels: int) -> Networks:
    config = TrainConfig(size=SIDE, channels=channels, latent_dim=4, width=8)
    rule = ImageRule(size=SIDE, channels=channels, window=None)
    return fresh_networks(config, rule).frozen()


def fitted(x: Tensor, rows: np.ndarray | None = None) -> tuple[dict[str, Tensors], Baselines]:
    rows = np.arange(len(x)) if rows is None else rows
    names = ("mixture", "nearest", "pca", "density")
    return fitting.fit_all(networks(x.shape[1]), names, x.numpy(), rows, 0, torch.device("cpu"))


@pytest.mark.parametrize("channels", [1, 3])
def test_pca_is_the_baseline_of_eval(channels: int) -> None:
    terms, baselines = fitted(pictures(200, 0, channels))
    new = pictures(50, 1, channels) + 0.1 * torch.randn(50, channels, SIDE, SIDE)
    found = pca.measure(evidence(new), terms["pca"])
    assert found.dtype == torch.float64
    np.testing.assert_allclose(found, baselines.scores(new.numpy())["pca"], rtol=1e-3)


def test_nearest_is_the_distance_to_the_means_of_three_neighbours() -> None:
    x, new = pictures(300, 0), pictures(40, 1)
    terms, baselines = fitted(x)
    axes = PCA(64, svd_solver="randomized", random_state=0).fit(x.flatten(1).numpy())
    inside, query = (axes.transform(y.flatten(1).numpy()) for y in (x, new))
    alike = NearestNeighbors(n_neighbors=3).fit(inside).kneighbors(inside)[1]
    means = inside[alike].mean(1)
    wanted = NearestNeighbors(n_neighbors=1).fit(means).kneighbors(query)[0][:, 0]
    found = nearest.measure(evidence(new), terms["nearest"])
    assert found.dtype == torch.float64
    np.testing.assert_allclose(found, wanted, rtol=1e-2)
    assert baselines.components.flags.c_contiguous


def test_a_mixture_of_two_kinds_is_far_from_the_nearest_images() -> None:
    terms, _ = fitted(pictures(300, 0))
    new, other = pictures(100, 1), pictures(100, 2)
    different = (new - other).abs().flatten(1).mean(1) > 0.1
    mixed = ((new + other) / 2)[different]
    normal = nearest.measure(evidence(new), terms["nearest"])
    assert nearest.measure(evidence(mixed), terms["nearest"]).min() > 2 * normal.max()


def bent_sheet(n: int, seed: int) -> np.ndarray:
    """Places (n, 8) on one bent sheet, which one Gaussian describes badly."""
    rng = np.random.default_rng(seed)
    one, other = rng.uniform(0, 2 * np.pi, (2, n))
    angles = (one, other, one + other)
    around = [f(angle) for angle in angles for f in (np.cos, np.sin)]
    sheet = np.stack([*around, np.cos(2 * one), np.sin(2 * other)], 1)
    return sheet + 0.1 * rng.standard_normal(sheet.shape)


def several_clouds(n: int, seed: int) -> np.ndarray:
    """Places (n, 8) around six centres."""
    rng = np.random.default_rng(seed)
    centres = np.random.default_rng(9).standard_normal((6, 8))
    return centres[rng.integers(6, size=n)] + 0.05 * rng.standard_normal((n, 8))


def test_one_bent_kind_has_no_gain_and_several_kinds_have(monkeypatch: pytest.MonkeyPatch) -> None:
    apart, bent = several_clouds(2000, 0), bent_sheet(2000, 0)
    assert mixture._gain(apart) > mixture.SEVERAL
    assert mixture._gain(bent) == 0
    # Without the look at how far the kinds are apart, both would count as several.
    monkeypatch.setattr(mixture, "ALONE", 1.0)
    assert mixture._gain(bent) > mixture.SEVERAL


def test_kinds_that_overlap_are_merged() -> None:
    shares = np.repeat([[0.9, 0.1, 0], [0.1, 0.9, 0], [0, 0, 1]], [30, 30, 40], axis=0)
    assert mixture._largest(shares) == pytest.approx(0.6)
    assert mixture._largest(np.eye(4)[np.arange(100) % 4]) == pytest.approx(0.25)
    assert mixture._largest(np.ones((5, 1))) == 1


def test_no_image_is_stored_and_one_anomaly_does_not_make_its_like_normal() -> None:
    x = pictures(160, 0)
    anomaly = torch.flip(x[:1], (2, 3))
    both = torch.cat([x, anomaly])
    terms, baselines = fitted(both)
    normal = nearest.measure(evidence(x), terms["nearest"])
    assert nearest.measure(evidence(anomaly), terms["nearest"]).min() > 3 * normal.max()
    inside = (both.flatten(1) - torch.from_numpy(baselines.mean)) @ torch.from_numpy(
        baselines.components
    ).T
    assert torch.cdist(terms["nearest"]["means"].float(), inside).min() > 1e-2


def test_of_very_many_images_some_are_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nearest, "MOST_IMAGES", 60)
    terms, _ = fitted(pictures(500, 0))
    assert 50 <= len(terms["nearest"]["means"]) <= 60
    new, noise = pictures(20, 1), torch.randn(20, 1, SIDE, SIDE)
    far = [nearest.measure(evidence(y), terms["nearest"]) for y in (new, noise)]
    assert far[1].min() > 2 * far[0].max()


@pytest.mark.parametrize("n", [2, 9, 40])
def test_few_images_and_equal_ones_give_finite_numbers(n: int) -> None:
    for x in (pictures(n, 0), torch.full((n, 1, SIDE, SIDE), 0.3)):
        found, _ = fitted(x)
        for y in (x, pictures(3, 1)):
            values = [pca.measure(evidence(y), found["pca"])]
            values.append(nearest.measure(evidence(y), found["nearest"]))
            values.append(mixture.measure(evidence(y), found["mixture"]))
            assert all(torch.isfinite(v).all() and (v >= 0).all() for v in values)


def test_company_changes_nothing_and_other_rows_do_not_count() -> None:
    x, new = pictures(60, 0), pictures(9, 1)
    terms, _ = fitted(x)
    apart = torch.cat([x, torch.randn(20, 1, SIDE, SIDE)])
    some, _ = fitted(apart, np.arange(60))
    for term, name in ((pca, "pca"), (nearest, "nearest"), (mixture, "mixture")):
        whole = term.measure(evidence(new), terms[name])
        alone = [term.measure(evidence(image[None]), terms[name]) for image in new]
        assert torch.allclose(whole, torch.cat(alone), rtol=1e-12, atol=0)
        assert torch.equal(whole, term.measure(evidence(new), some[name]))


def test_parts_of_larger_images_have_pca_alone() -> None:
    names = measure.terms_of(rotated=True, patches=True)
    assert "pca" in names
    assert not {"nearest", "mixture"} & set(names)


@pytest.fixture(scope="module")
def saved(few: Digits, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("components") / "model.safetensors"
    settings = {"images_shown": 64, "encoder_images_shown": 32, "width": 8}
    Detector.train(few.normal, path=path, reconstruction_images_shown=0, **settings)
    return path


@pytest.mark.parametrize("score", ["pca", "nearest"])
def test_each_is_a_calibrated_score_of_a_model(saved: Path, few: Digits, score: str) -> None:
    detector = Detector.load(saved)
    report = detector.score(few.queries, score=score)
    columns = list(detector.model.fitted)
    calibrated = detector.model.calibration.terms[:, columns.index(score)]
    for image in report.images:
        assert set(image.terms) == {score}
        assert image.score == image.terms[score]
        assert image.p_value == p_values(np.array([image.score]), calibrated)[0]
        assert image.verdict == ("anomalous" if image.score > report.threshold.score else "normal")
    again = detector.score(few.queries, score=score, batch_size=3)
    assert [i.score for i in again.images] == [i.score for i in report.images]


def test_eval_has_the_same_auroc_as_its_baseline(saved: Path, few: Digits) -> None:
    report = Detector.load(saved).evaluate(few.labels, score="pca")
    assert report.auroc is not None
    assert report.auroc == pytest.approx(report.baselines["pca"]["auroc"], abs=2e-3)
    near = Detector.load(saved).evaluate(few.labels, score="nearest")
    assert near.auroc is not None
    assert near.auroc > 0.7


def test_components_are_stored_once(saved: Path) -> None:
    tensors = model_file.load(saved).tensors
    terms = ("terms/pca", "terms/nearest", "terms/mixture")
    own = {name.removeprefix("terms/") for name in tensors if name.startswith(terms)}
    kinds = {f"mixture/{name}" for name in ("centres", "gain", "height", "whiten")}
    assert own == {"nearest/means"} | kinds
    model, _ = Model.read(saved, Runtime.resolve("cpu", "float32", 1))
    assert set(model.fitted["pca"]) == {"mean", "components"}
    assert set(model.fitted["nearest"]) == {"mean", "components", "means"}


def test_a_model_without_the_term_says_so_and_has_its_other_scores(saved: Path) -> None:
    model, _ = Model.read(saved, Runtime.resolve("cpu", "float32", 1))
    columns = tuple(model.fitted)
    scorer = Scorer([name.replace("nearest", "?") for name in columns], model.calibration)
    with pytest.raises(ModelError, match="--score nearest: this model has no term nearest"):
        scorer.calibration_scores("nearest")
    whole = Scorer(columns, model.calibration)
    for score in ("calibrated", "pca", "paper"):
        found = scorer.calibration_scores(score)
        np.testing.assert_array_equal(found, whole.calibration_scores(score))


def test_the_nearest_images_find_what_pca_does_not() -> None:
    # Mixtures of kinds lie among the components, so they have no residual.
    terms, _ = fitted(pictures(300, 0))
    new, mixed = pictures(100, 1), (pictures(100, 1) + pictures(100, 2)) / 2
    truth = np.repeat([0, 1], 100)
    found = {
        term: torch.cat([term.measure(evidence(y), terms[name]) for y in (new, mixed)])
        for term, name in ((pca, "pca"), (nearest, "nearest"))
    }
    assert roc_auc_score(truth, found[pca]) < 0.6
    assert roc_auc_score(truth, found[nearest]) > 0.85


def test_mixture_is_the_density_of_several_gaussians(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("IMAGES_A_KIND", 50), ("FITS", 1), ("LEAST", 0), ("SEVERAL", 0)):
        monkeypatch.setattr(mixture, name, value)
    x, new = pictures(300, 0), pictures(100, 1)
    terms, baselines = fitted(x)
    d = terms["mixture"]["centres"].shape[1]
    assert d == mixture.COMPONENTS
    inside, place = (
        (y.flatten(1).numpy() - baselines.mean) @ baselines.components[:d].T for y in (x, new)
    )
    noise = mixture.SHRINKAGE * inside.var(0).mean()
    kinds = GaussianMixture(6, reg_covar=noise, random_state=0).fit(inside)
    found = mixture.measure(evidence(new), terms["mixture"]).numpy()
    assert (found >= 1).all()
    # Squares of the distances are minus twice the logarithm of the density, plus a constant.
    together = kinds.score_samples(place) + d * np.square(np.log(found)) / 2
    np.testing.assert_allclose(together, together.mean(), atol=0.05)


def test_mixture_sees_what_one_gaussian_does_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mixture, "IMAGES_A_KIND", 50)
    monkeypatch.setattr(mixture, "SEVERAL", 0)
    x, new = pictures(300, 0), pictures(100, 1)
    mixed = (new + pictures(100, 2)) / 2
    truth = np.repeat([0, 1], 100)

    def auroc() -> float:
        terms, _ = fitted(x)
        scores = [mixture.measure(evidence(y), terms["mixture"]) for y in (new, mixed)]
        return float(roc_auc_score(truth, torch.cat(scores)))

    assert auroc() > 0.85
    monkeypatch.setattr(mixture, "MOST_KINDS", 1)
    assert auroc() < 0.5


def test_kinds_of_few_images_are_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mixture, "IMAGES_A_KIND", 20)
    monkeypatch.setattr(mixture, "SEVERAL", 0)
    x = pictures(300, 0)
    anomalies = x[:1].flip(2, 3) + 0.02 * pictures(6, 1)
    both = torch.cat([x, anomalies])
    without = mixture.measure(evidence(anomalies), fitted(both)[0]["mixture"])
    monkeypatch.setattr(mixture, "LEAST", 0)
    beside = mixture.measure(evidence(anomalies), fitted(both)[0]["mixture"])
    assert without.log().min() > 2 * beside.log().max()


def test_a_query_far_from_all_has_a_finite_distance() -> None:
    terms, _ = fitted(pictures(300, 0))
    far = 1e6 * torch.ones(1, 1, SIDE, SIDE)
    assert torch.isfinite(mixture.measure(evidence(far), terms["mixture"])).all()


def test_the_gain_says_whether_images_are_of_several_kinds(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(mixture, "COMPONENTS", 8)  # few pictures differ in no more
    one = 0.2 * torch.randn(1200, 1, SIDE, SIDE, generator=torch.Generator().manual_seed(0))
    several, _ = fitted(pictures(1200, 0))
    single, _ = fitted(one)
    few, _ = fitted(pictures(200, 0))
    assert mixture.factor(several["mixture"], SIDE) == 1
    assert mixture.factor(single["mixture"], SIDE) == 0
    assert mixture.factor(few["mixture"], SIDE) == 0
    # Nothing more than one Gaussian is fitted where the term does not count.
    assert [len(terms["mixture"]["centres"]) for terms in (single, few)] == [1, 1]
    assert len(several["mixture"]["centres"]) > KINDS
    assert mixture.factor(several["mixture"], 63) == 1
    assert mixture.factor(several["mixture"], 64) == 0  # small defects would drown


def test_the_mixture_counts_where_images_are_of_several_kinds_and_single_gaussians_elsewhere() -> (
    None
):
    config = TrainConfig(size=SIDE, channels=1, latent_dim=4, width=8)
    rule = ImageRule(size=SIDE, channels=1, window=None)
    networks = fresh_networks(config, rule).frozen()
    terms, _ = fitted(pictures(300, 0))
    terms |= measure.fit_terms(networks, ["density", "local"], [pictures(300, 0)])
    x = pictures(40, 3).numpy()

    def weights(gain: float) -> dict[str, float]:
        stats = terms["mixture"] | {"gain": torch.tensor(gain)}
        chosen = {"density": terms["density"], "local": terms["local"], "mixture": stats}
        measurer = measure.Measurer(networks, chosen, rule)
        found = term_weights(measurer, x, measurer.terms(x), np.ones((40, 3)), 0)
        return dict(zip(chosen, found, strict=True))

    several, one = weights(mixture.SEVERAL + 0.01), weights(mixture.SEVERAL - 0.01)
    assert 0 < several["mixture"] <= 1
    assert several["density"] == several["local"] == 0
    assert one["mixture"] == 0
    assert min(one["density"], one["local"]) > 0


def test_a_mixture_of_more_components_than_the_model_has_is_refused(
    saved: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    contents = model_file.load(saved)
    many = len(contents.tensors["baselines/components"]) + 1
    wide = {"centres": torch.zeros(1, many), "whiten": torch.zeros(1, many, many)}
    tensors = contents.tensors | {f"terms/mixture/{name}": value for name, value in wide.items()}
    monkeypatch.setattr(model_file, "load", lambda path: contents._replace(tensors=tensors))
    with pytest.raises(ModelError, match="terms/mixture/centres has too many components"):
        Model.read(saved, Runtime.resolve("cpu", "float32", 1))
