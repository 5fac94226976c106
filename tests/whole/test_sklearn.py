"""`AnomalyDetector` behaves as scikit-learn expects of its estimators."""

from __future__ import annotations

import dataclasses
import inspect
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.base import clone
from sklearn.datasets import load_digits
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import MinMaxScaler
from sklearn.utils.estimator_checks import parametrize_with_checks

from anoscan import Detector, TrainConfig
from anoscan.core.config import TrainSettings
from anoscan.core.errors import AnoscanWarning, TrainingInterrupted
from anoscan.sklearn import AnomalyDetector

TINY: dict[str, Any] = {
    "images_shown": 32,
    "rotation_images_shown": 0,
    "encoder_images_shown": 32,
    "reconstruction_images_shown": 0,
    "batch_size": 16,
    "width": 4,
    "latent_dim": 4,
    "size": 16,
    "workers": 1,
}
DIGITS = load_digits()
NORMALS, ZEROS = DIGITS.data[DIGITS.target != 0], DIGITS.data[DIGITS.target == 0]


# No check is expected to fail.
@parametrize_with_checks([AnomalyDetector(**TINY)])  # type: ignore[untyped-decorator]
def test_estimator_checks(estimator: Any, check: Callable[[Any], None]) -> None:
    check(estimator)


@pytest.fixture(scope="module")
def fitted() -> AnomalyDetector:
    return AnomalyDetector(**TINY, random_state=0).fit(NORMALS[:60])


def test_the_parameters_are_all_settings_of_a_training() -> None:
    parameters = inspect.signature(AnomalyDetector).parameters
    own = ("random_state", "false_alarm_rate", "anomaly_score", "device", "workers")
    defaults = {name: p.default for name, p in parameters.items() if name not in own}
    defaults["fit"] = defaults.pop("fit_images")  # `fit` is a method of every estimator
    assert defaults == dataclasses.asdict(TrainConfig())


def test_the_keywords_of_train_are_all_settings() -> None:
    fields = {field.name: field.type for field in dataclasses.fields(TrainConfig)}
    assert fields == {
        name: annotation.__forward_arg__
        for name, annotation in TrainSettings.__annotations__.items()
    }


def test_scores_are_those_of_a_detector(fitted: AnomalyDetector) -> None:
    queries = np.concatenate([NORMALS[60:70], ZEROS[:5]])
    images = queries.reshape(-1, 8, 8) / 16  # 0 to 16 is the range that `fit` has seen
    assert fitted.range_ == (0, 16)
    expected = fitted.detector_.predict(images.astype(np.float32))
    np.testing.assert_allclose(fitted.score_samples(queries), -expected.scores, atol=1e-6)
    assert np.array_equal(fitted.predict(queries) == -1, expected.anomalous)
    difference = fitted.score_samples(queries) - fitted.decision_function(queries)
    np.testing.assert_allclose(difference, fitted.offset_)
    assert set(fitted.predict(queries)) <= {-1, 1}


def test_values_beyond_the_range_of_fit_stay_beyond_it(fitted: AnomalyDetector) -> None:
    bright = NORMALS[60:61] * 1.0
    bright[0, :8] = 40.0
    clipped = np.minimum(bright, 16)
    assert fitted.score_samples(bright)[0] != fitted.score_samples(clipped)[0]


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
def test_images_are_scored_like_their_flat_vectors(dtype: type) -> None:
    white = 1 if dtype == np.float32 else np.iinfo(dtype).max
    flat = (NORMALS[:40] / 16 * white).astype(dtype)
    images = flat.reshape(-1, 8, 8)
    of_flat, of_images = (AnomalyDetector(**TINY).fit(x) for x in (flat, images))
    assert of_flat.range_ == of_images.range_ == (0, white)
    assert of_flat.n_features_in_ == of_images.n_features_in_ == 64
    expected = of_flat.score_samples(flat)
    for estimator in (of_flat, of_images):
        for given in (flat, images, images[..., None]):
            assert np.array_equal(estimator.score_samples(given), expected)


def test_colours_are_images_too() -> None:
    tints = np.random.default_rng(0).random((40, 1, 1, 3))
    images = NORMALS[:40].reshape(-1, 8, 8, 1) / 16 * tints
    estimator = AnomalyDetector(**TINY).fit(images)
    assert estimator.image_shape_ == (8, 8, 3)
    flat = AnomalyDetector(**TINY).fit(images.reshape(40, -1))
    assert flat.image_shape_ == (8, 8, 3)
    assert np.array_equal(flat.predict(images), estimator.predict(images))
    with pytest.raises(ValueError, match="fit has seen"):
        estimator.predict(images[..., 0])
    with pytest.raises(ValueError, match="they are"):
        AnomalyDetector(**TINY).fit(np.zeros((20, 8, 8, 17)))


def test_vectors_that_are_no_square_images_are_laid_out_with_a_warning() -> None:
    with pytest.warns(AnoscanWarning, match="vectors of 10 values.*laid out in 4x4"):
        estimator = AnomalyDetector(**TINY).fit(NORMALS[:40, 10:20])
    assert estimator.image_shape_ == (4, 4)


def test_equal_seeds_give_equal_models_and_others_do_not() -> None:
    def scores(**options: Any) -> np.ndarray:
        return AnomalyDetector(**TINY, **options).fit(NORMALS[:40]).score_samples(NORMALS[40:50])

    assert np.array_equal(scores(random_state=3), scores(seed=3))
    first = scores(random_state=np.random.RandomState(1))
    assert np.array_equal(first, scores(random_state=np.random.RandomState(1)))
    assert not np.array_equal(first, scores(random_state=3))


def test_a_pickle_holds_a_model_file_and_no_objects_of_torch(fitted: AnomalyDetector) -> None:
    state = fitted.__getstate__()
    assert isinstance(state["model_"], bytes)
    data = pickle.dumps(fitted)
    assert b"torch" not in data.replace(state["model_"], b"")
    again = pickle.loads(data)
    assert np.array_equal(again.decision_function(NORMALS), fitted.decision_function(NORMALS))
    assert again.get_params() == fitted.get_params()
    assert not hasattr(clone(fitted), "detector_")


def test_cross_validation_pipelines_and_searches_go_through() -> None:
    # Grades of the labels: 1 is normal, as in `predict`.
    images = np.concatenate([NORMALS[:50], ZEROS[:10]])
    labels = np.repeat([1, -1], (50, 10))
    order = np.random.default_rng(0).permutation(60)
    pipeline = make_pipeline(MinMaxScaler(clip=True), AnomalyDetector(**TINY))
    found = cross_val_score(pipeline, images[order], labels[order], cv=2, scoring="roc_auc")
    assert found.shape == (2,)
    assert np.isfinite(found).all()
    search = GridSearchCV(
        AnomalyDetector(**TINY), {"latent_dim": np.array([2, 3])}, cv=2, scoring="roc_auc"
    )
    search.fit(images[order], labels[order])
    assert search.best_params_["latent_dim"] in (2, 3)


def test_nothing_is_written_to_the_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home = tmp_path / "home"
    monkeypatch.setenv("ANOSCAN_HOME", str(home))
    pickle.loads(pickle.dumps(AnomalyDetector(**TINY).fit(NORMALS[:20]))).predict(NORMALS[:2])
    assert not home.exists()


@pytest.mark.parametrize(
    ("parameters", "images", "words"),
    [
        ({"width": 1}, NORMALS[:20], "--width must be from 4"),
        ({"false_alarm_rate": 2}, NORMALS[:20], "must lie between 0 and 1"),
        ({"anomaly_score": "nix"}, NORMALS[:20], "--score must be one of"),
        ({}, NORMALS[:3], "minimum of 8"),
        ({}, np.ones((20, 16)), "all the same picture"),
    ],
)
def test_what_cannot_be_fitted_is_a_value_error(
    parameters: dict[str, Any], images: np.ndarray, words: str
) -> None:
    with pytest.raises(ValueError, match=words):
        AnomalyDetector(**{**TINY, **parameters}).fit(images)


def test_an_interrupt_ends_a_search(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*arguments: Any, **options: Any) -> Detector:
        raise TrainingInterrupted("stopped")

    monkeypatch.setattr(Detector, "train", interrupted)
    with pytest.raises(KeyboardInterrupt):
        AnomalyDetector(**TINY).fit(NORMALS[:20])
