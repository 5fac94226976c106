from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from anoscan.cli.app import main
from anoscan.core.errors import InputError, ModelError, UsageError
from anoscan.detector import Detector
from anoscan.evaluation import drift
from anoscan.evaluation.recalibrate import Target
from anoscan.model.judge import Judge
from anoscan.report.map_files import MapFiles
from anoscan.scoring import calibration
from anoscan.scoring.choices import HowToScore, ScoreRequest
from anoscan.scoring.maps import MapScale
from tests.conftest import Digits


@pytest.fixture
def own(trained: Detector, tmp_path: Path) -> Detector:
    """A copy of the trained model that a test may change."""
    copy = tmp_path / "own.safetensors"
    shutil.copy(trained.reference.path, copy)
    return Detector.load(copy, workers=1)


@pytest.fixture(scope="module")
def unseen(digits: Digits, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Normal queries in a folder of their own."""
    folder = tmp_path_factory.mktemp("unseen")
    for line in digits.labels.read_text(encoding="utf-8").splitlines()[1:]:
        path, label = line.split(",")
        if label == "0":
            shutil.copy(digits.labels.parent / path, folder)
    return folder


def run(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, *args: str
) -> tuple[int, str, str]:
    monkeypatch.setattr("sys.argv", ["anoscan", *args])
    with pytest.raises(SystemExit) as stop:
        main()
    captured = capsys.readouterr()
    assert isinstance(stop.value.code, int)
    return stop.value.code, captured.out, captured.err


def paler(source: Path, folder: Path) -> Path:
    """The same images as another camera might take them: with a black that is not black."""
    folder.mkdir()
    for file in source.iterdir():
        with Image.open(file) as image:
            image.point(lambda value: value * 0.6 + 90).save(folder / file.name)
    return folder


def test_new_normals_set_the_threshold_and_the_history_says_so(
    own: Detector, unseen: Path, tmp_path: Path
) -> None:
    pale, at = paler(unseen, tmp_path / "pale"), HowToScore(false_alarm_rate=0.01)
    before, weights = own.score(pale, **at), own.model.networks.generator.state_dict()
    assert before.counts["anomalous"] > 15
    half = sorted(pale.iterdir())
    report = own.calibrate(half[::2], name="pale")
    loaded = Detector.load("pale")
    after = loaded.score(half[1::2], **at)
    assert after.counts["anomalous"] <= 5
    assert report.images == len(half[::2]) == after.threshold.calibration_images
    assert report.warning is None
    assert report.previous.name == "own"
    # Older than the model that it came from, which so is still the one trained last.
    made, source = (Path(model.path).stat() for model in (report.model, report.previous))
    assert made.st_mtime_ns == source.st_mtime_ns - 1
    assert report.model.path == str(loaded.reference.path)
    assert [event["action"] for event in loaded.model.metadata["history"]] == ["calibrate"]
    assert not any(event["uses_labels"] for event in loaded.model.metadata["history"])
    assert after.images[-1].mismatch is None
    for key, value in loaded.model.networks.generator.state_dict().items():
        assert value.equal(weights[key])
    with pytest.raises(ModelError, match="exists already"):
        own.calibrate(half[::2], name="pale")


def test_new_normals_set_the_scale_of_maps(own: Detector, unseen: Path, tmp_path: Path) -> None:
    half = sorted(paler(unseen, tmp_path / "pale").iterdir())

    def shown(detector: Detector, name: str) -> tuple[np.ndarray, MapScale]:
        report = detector.score(half[1::2], maps=MapFiles(tmp_path / name, ("npy",)))
        values = [np.load(image.maps["npy"]) for image in report.images if image.maps]
        return np.stack(values), detector.model.maps.scale

    odd, before = shown(own, "before")
    assert (odd > before.level).mean() > 0.05
    own.calibrate(half[::2], name="pale")
    calm, after = shown(Detector.load("pale"), "after")
    assert abs(np.median(calm)) < 0.5
    assert (calm > after.level).mean() < 0.03
    assert own.model.metadata["maps"]["level"] == after.level


def test_calibrating_on_the_held_out_images_of_the_training_changes_nothing(
    own: Detector, digits: Digits
) -> None:
    held = sorted(digits.normal.iterdir())
    before = own.model.calibration
    report = own.calibrate(held)
    assert "trained on" in (report.warning or "")
    after = own.model.calibration
    rows = {tuple(row) for row in np.round(after.terms, 6).tolist()}
    assert {tuple(row) for row in np.round(before.terms, 6).tolist()} <= rows
    assert Detector.load(own.reference.path).model.metadata == own.model.metadata


def test_new_deep_images_set_the_grey_levels(own: Detector, unseen: Path, tmp_path: Path) -> None:
    folder = tmp_path / "deep"
    folder.mkdir()
    for file in unseen.iterdir():
        with Image.open(file) as image:
            deep = np.asarray(image).astype(np.uint16) * 16 + 500
        Image.fromarray(deep).save(folder / file.name)
    own.calibrate([folder])
    window = own.model.rule.window
    assert window is not None
    assert window == pytest.approx((500, 4580), rel=0.01)
    assert own.model.metadata["history"][0]["window"] == list(window)


def test_target_recall_is_reached_at_the_lowest_rate(own: Detector, digits: Digits) -> None:
    report = own.calibrate([], Target(labels=digits.labels, target_recall=0.8))
    decision = report.decision
    assert decision is not None
    assert decision.uses_labels
    assert report.uses_labels
    assert decision.recall is not None
    assert decision.recall >= 0.8
    found = Detector.load(own.reference.path).evaluate(digits.labels)
    assert found.threshold_uses_labels
    assert found.at_threshold.recall == pytest.approx(decision.recall)
    stricter = decision.false_alarm_rate - 1 / (report.threshold.calibration_images + 1)
    if stricter > 0:
        recall = own.evaluate(digits.labels, false_alarm_rate=stricter).at_threshold.recall
        assert recall is not None
        assert recall < 0.8


def test_a_dearer_miss_lets_more_false_alarms_through(own: Detector, digits: Digits) -> None:
    rates = []
    for cost in (0.5, 5, 100):
        decision = own.calibrate([], Target(labels=digits.labels, miss_cost=cost)).decision
        assert decision is not None
        rates.append(decision.false_alarm_rate)
    assert rates == sorted(rates)
    assert rates[0] < rates[-1]
    assert len(own.model.metadata["history"]) == 3


def test_an_automatic_rate_is_chosen_anew_for_new_calibration_images(
    own: Detector, unseen: Path
) -> None:
    assert (own.threshold().false_alarm_rate, own.threshold().chosen) == (0.05, "auto")
    own.calibrate([], Target(false_alarm_rate=0.2))
    assert (own.threshold().false_alarm_rate, own.threshold().chosen) == (0.2, "given")
    asked = own.threshold(ScoreRequest(false_alarm_rate="auto"))
    assert (asked.false_alarm_rate, asked.chosen) == (0.05, "auto")
    decision = own.calibrate([], Target(false_alarm_rate="auto")).decision
    assert decision is not None
    assert (decision.false_alarm_rate, decision.set_by) == (0.05, "auto")
    report = own.calibrate(sorted(unseen.iterdir())[:80])
    assert report.threshold.calibration_images == 80
    for detector in (own, Detector.load(own.reference.path)):
        found = detector.threshold()
        assert (found.false_alarm_rate, found.chosen) == (0.1, "auto")


def test_rates_from_labels_are_those_of_least_cost() -> None:
    p = np.array([0.1, 0.2, 0.2, 0.9])
    assert calibration.rate_for_recall(p, 0.75) == 0.2
    assert calibration.rate_for_recall(p, 0.76) == 0.9
    n, share = 9, 0.5
    costs = {
        rate: (1 - share) * rate + share * 2 * (p > rate + 1e-9).mean()
        for rate in np.arange(1, n + 1) / (n + 1)
    }
    assert calibration.rate_for_cost(p, n, share, 2) == pytest.approx(min(costs, key=costs.get))  # type: ignore[arg-type]


def test_holm_bounds_any_false_rejection() -> None:
    np.testing.assert_allclose(calibration.holm(np.array([0.01, 0.04, 0.03])), [0.03, 0.06, 0.06])
    assert calibration.holm(np.array([0.9, 0.8])).max() == 1


def test_calibrate_on_the_command_line_marks_what_used_labels(
    own: Detector,
    digits: Digits,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    path, labels = own.reference.path, str(digits.labels)
    code, out, _ = run(
        capsys, monkeypatch, "calibrate", path, "--labels", labels, "--target-recall", "0.7"
    )
    assert code == 0
    assert "uses labels" in out
    code, out, _ = run(
        capsys, monkeypatch, "calibrate", path, "--false-alarm-rate", "0.2", "--json"
    )
    document = json.loads(out)
    assert document["schema"] == "anoscan.calibrate/1"
    assert document["decision"]["false_alarm_rate"] == 0.2
    assert document["uses_labels"] is False
    assert [event["uses_labels"] for event in document["history"]] == [True, False]
    assert Detector.load(path).threshold().false_alarm_rate == 0.2
    both = ["--labels", labels, "--target-recall", "0.5"]
    wrong = (["--target-recall", "0.5"], [], ["--miss-cost", "3"], [*both, "--miss-cost", "3"])
    for options in wrong:
        assert run(capsys, monkeypatch, "calibrate", path, *options)[0] == 2


def test_recall_that_no_rate_reaches_is_refused(own: Detector, tmp_path: Path) -> None:
    # A calm image called an anomaly: only a rate of 1 would find it.
    calm = own.model.calibration.terms.min(0)
    judge = Judge(own.model, own.runtime)
    p = calibration.p_values(
        judge.scorer.scores(calm[None], "calibrated"), judge.scorer.calibration_scores("calibrated")
    )
    assert calibration.rate_for_recall(p, 1.0) == 1
    with pytest.raises(UsageError, match="excludes"):
        Target(0.1, labels=tmp_path / "no.csv", target_recall=0.5)
    few = tmp_path / "few"
    few.mkdir()
    Image.new("L", (8, 8)).save(few / "one.png")
    with pytest.raises(InputError, match="too few to calibrate"):
        own.calibrate([few])


def test_drift_finds_another_camera_and_nothing_where_there_is_none(
    trained: Detector, unseen: Path, tmp_path: Path
) -> None:
    same = drift.compare(
        Judge(trained.model, trained.runtime), trained.reference, [unseen], lambda progress: None
    )
    assert same.fits
    assert same.counts == {"compared": 150, "mismatch": same.counts["mismatch"], "skipped": 0}
    other = drift.compare(
        Judge(trained.model, trained.runtime),
        trained.reference,
        [paler(unseen, tmp_path / "pale")],
        lambda progress: None,
    )
    assert not other.fits
    assert {"score", "brightness"} <= {check.name for check in other.checks if check.drifted}
    assert "anoscan calibrate" in other.advice


def test_drift_knows_the_look_of_images_that_the_model_was_trained_on(
    trained: Detector, digits: Digits
) -> None:
    found = drift.compare(
        Judge(trained.model, trained.runtime),
        trained.reference,
        [digits.normal],
        lambda progress: None,
    )
    assert not found.fits
    assert "trained on look like that: give it others." in found.advice
    assert "If it never saw these" in found.advice.split("anoscan calibrate")[0]


def test_a_model_that_does_not_fit_has_an_exit_code_of_its_own(
    trained: Detector,
    unseen: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    path = trained.reference.path
    code, out, _ = run(capsys, monkeypatch, "drift", path, str(unseen), "--json")
    assert code == 0
    assert json.loads(out)["fits"] is True
    pale = paler(unseen, tmp_path / "pale")
    code, out, _ = run(capsys, monkeypatch, "drift", path, str(pale))
    assert code == 5
    assert "no longer fits" in out


def mvtec(folder: Path, train: Path, unseen: Path) -> Path:
    """Images laid out like MVTec AD; the defects are images that are wholly white."""
    shutil.copytree(train, folder / "train" / "good")
    shutil.copytree(unseen, folder / "test" / "good")
    (folder / "test" / "white").mkdir()
    for number in range(60):
        Image.new("L", (8, 8), 255).save(folder / "test" / "white" / f"{number}.png")
    return folder


def test_of_a_root_like_mvtec_calibrate_uses_train_good_and_drift_test_good(
    own: Detector,
    unseen: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    root = mvtec(tmp_path / "root", paler(unseen, tmp_path / "pale"), unseen)
    path = own.reference.path
    code, out, err = run(capsys, monkeypatch, "drift", path, str(root), "--json")
    assert code == 0
    assert json.loads(out)["counts"]["compared"] == 150
    assert "only " + (root / "test/good").as_posix() + " is used" in err
    code, out, err = run(capsys, monkeypatch, "calibrate", path, str(root), "--json")
    assert code == 0
    assert json.loads(out)["images"] == 150
    assert "only " + (root / "train/good").as_posix() + " is used" in err
    # Calibrated on pale images it was: now those that are not pale are the odd ones.
    assert run(capsys, monkeypatch, "drift", path, str(root))[0] == 5
    shutil.rmtree(root / "test" / "good")
    code, _, err = run(capsys, monkeypatch, "drift", path, str(root))
    assert code == 1
    assert "has no test/good" in err
