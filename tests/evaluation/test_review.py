"""Images that a person has looked at, in the calibration of a model."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from anoscan.core.errors import InputError
from anoscan.detector import Detector
from anoscan.evaluation.labels import gather
from anoscan.evaluation.recalibrate import Target
from tests.conftest import Digits
from tests.evaluation.test_recalibrate import run


@pytest.fixture
def own(trained: Detector, tmp_path: Path) -> Detector:
    """A copy of the trained model that a test may change."""
    copy = tmp_path / "own.safetensors"
    shutil.copy(trained.reference.path, copy)
    return Detector.load(copy, workers=1)


@pytest.fixture(scope="module")
def some_alarms(
    trained: Detector, digits: Digits, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """Labels of normal images that the model calls anomalous, of a copy, and of anomalies."""
    folder = tmp_path_factory.mktemp("alarms")
    found = trained.score(digits.queries).images
    rows = [line.split(",") for line in digits.labels.read_text(encoding="utf-8").split()[1:]]
    odd = {Path(path).name: label == "1" for path, label in rows}
    named = [(Path(i.path), odd[Path(i.path).name], i.verdict == "anomalous") for i in found]
    false = [path for path, anomalous, alarm in named if alarm and not anomalous][:5]
    true = [path for path, anomalous, _ in named if anomalous][::15]
    assert len(false) >= 3
    copy = folder / "copy.png"
    shutil.copy(false[0], copy)
    lines = [f"{path},normal" for path in (*false, copy)] + [f"{path},anomaly" for path in true]
    labels = folder / "labels.csv"
    labels.write_text("\n".join(["path,label", *lines]), encoding="utf-8")
    return labels


@pytest.fixture
def alarms(some_alarms: Path, tmp_path: Path) -> Path:
    """A copy of these labels that a test may change."""
    return Path(shutil.copy(some_alarms, tmp_path / "labels.csv"))


def test_normal_images_join_the_calibration_once_and_anomalies_never(
    own: Detector, alarms: Path
) -> None:
    before, terms = own.threshold(), own.model.calibration.terms
    weights = own.model.calibration.weights
    report = own.calibrate([], Target(labels=alarms))
    review = report.review
    assert review is not None
    assert review.joined == review.normal - 1 == review.alarms_before - 1
    assert review.known == 1  # the copy
    assert (review.threshold_before, review.threshold) == (before.score, report.threshold.score)
    assert review.threshold > before.score
    assert review.alarms < review.alarms_before
    assert "higher scores than normal images in general" in (review.warning or "")
    assert report.threshold.calibration_images == len(terms) + review.joined
    loaded = Detector.load(own.reference.path)
    kept = loaded.model.calibration
    np.testing.assert_array_equal(kept.terms[: len(terms)], terms)
    np.testing.assert_array_equal(kept.weights, weights)
    assert loaded.threshold() == report.threshold
    assert loaded.threshold().uses_labels
    assert loaded.model.metadata["history"][-1]["joined"] == review.joined

    digest = own.reference.sha256
    again = own.calibrate([], Target(labels=alarms))
    assert again.review is not None
    assert (again.review.joined, again.review.warning) == (0, None)
    assert again.threshold == report.threshold
    assert Detector.load(own.reference.path).reference.sha256 == digest


def test_what_is_said_of_the_anomalies_is_what_eval_finds(own: Detector, alarms: Path) -> None:
    before = own.evaluate(alarms).at_threshold.confusion
    review = own.calibrate([], Target(labels=alarms)).review
    after = own.evaluate(alarms)
    assert review is not None
    assert review.found_before == before.true_positive
    assert review.found == after.at_threshold.confusion.true_positive
    assert review.alarms == after.at_threshold.confusion.false_positive
    assert len(review.missed) == review.anomalous - review.found
    assert after.threshold_uses_labels


def test_anomalies_alone_change_no_byte_of_the_model(own: Detector, alarms: Path) -> None:
    text = alarms.read_text(encoding="utf-8").splitlines()
    alarms.write_text("\n".join(line for line in text if "normal" not in line), encoding="utf-8")
    before = Path(own.reference.path).read_bytes()
    report = own.calibrate([], Target(labels=alarms))
    assert report.review is not None
    assert report.review.anomalous > 0
    assert report.review.threshold == report.review.threshold_before
    assert Path(own.reference.path).read_bytes() == before
    assert not report.uses_labels


def test_new_normal_images_take_the_place_of_those_that_joined(
    own: Detector, alarms: Path, digits: Digits
) -> None:
    own.calibrate([], Target(labels=alarms))
    normals = sorted(digits.normal.iterdir())[:40]
    report = own.calibrate(normals, Target(false_alarm_rate=0.2))
    assert report.threshold.calibration_images == 40
    assert not report.uses_labels


def test_on_the_command_line_it_says_what_it_did(
    own: Detector,
    alarms: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    path = str(own.reference.path)
    options = ("--labels", str(alarms), "--false-alarm-rate", "10%")
    code, out, err = run(capsys, monkeypatch, "calibrate", path, *options)
    words = " ".join(out.split())
    assert code == 0
    assert "labelled normal images joined the images that calibrate the model" in words
    assert "They had no part in the threshold." in words
    assert "a false-alarm rate of 10 %" in words
    assert "were false alarms" in err
    code, out, _ = run(capsys, monkeypatch, "calibrate", path, *options, "--json")
    assert json.loads(out)["review"]["joined"] == 0


def test_labels_that_a_browser_saved_elsewhere_are_relative_to_the_current_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "queries").mkdir()
    Image.new("L", (8, 8)).save(tmp_path / "queries" / "a.png")
    downloads = tmp_path / "downloads"
    downloads.mkdir()
    labels = downloads / "labels.csv"
    labels.write_text("path,label\nqueries/a.png,normal\n", encoding="utf-8")
    monkeypatch.chdir(downloads)
    with pytest.raises(InputError, match="relative to the folder where anoscan score"):
        gather(labels, None, None)
    monkeypatch.chdir(tmp_path)
    assert [item.image.path for item in gather(labels, None, None).images] == ["queries/a.png"]
    # What lies beside the CSV comes first.
    shutil.copytree(tmp_path / "queries", downloads / "queries")
    found = gather(labels, None, None).images[0].image.file
    assert found.resolve() == (downloads / "queries" / "a.png").resolve()
