from __future__ import annotations

import io
import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from sklearn.metrics import average_precision_score, roc_auc_score

from anoscan import cli
from anoscan.core.results import to_json
from anoscan.detector import Detector
from anoscan.evaluation import metrics
from anoscan.model.judge import Wanted
from tests.conftest import Digits

Run = Callable[..., tuple[int, str, str]]
TYPES = ("left", "right")


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Run:
    def call(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["anoscan", *map(str, arguments)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            cli.main()
        return int(ended.value.code or 0), *capsys.readouterr()

    return call


@pytest.fixture(scope="session")
def layout(digits: Digits, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Scans three times as large, in MVTec's folders; a white bar is the defect."""
    root = tmp_path_factory.mktemp("mvtec") / "digits"
    files = sorted(digits.queries.iterdir())
    normals = [Image.open(f).resize((24, 24)) for f in sorted(digits.normal.iterdir())[:60]]
    for folder in ("train/good", "train/other", *(f"test/{t}" for t in ("good", *TYPES))):
        (root / folder).mkdir(parents=True)
    for number, picture in enumerate(normals[:40]):
        picture.save(root / f"train/good/{number:02}.png")
    shutil.copy(files[0], root / "train/other/0.png")
    for number, picture in enumerate(normals[40:]):
        picture.save(root / f"test/good/{number:02}.png")
    for kind in TYPES:
        (root / "ground_truth" / kind).mkdir(parents=True)
        for number, picture in enumerate(normals[:8]):
            mask = np.zeros((24, 24), np.uint8)
            mask[2:22, (2 if kind == "left" else 17) :][:, :4] = 255
            spoilt = np.where(mask > 0, 255 - np.asarray(picture), picture)
            Image.fromarray(spoilt).save(root / f"test/{kind}/{number}.png")
            Image.fromarray(mask).save(root / f"ground_truth/{kind}/{number}_mask.png")
    return root


def test_figures_of_pixels_are_those_of_the_maps_at_the_images_own_size(
    trained: Detector, layout: Path
) -> None:
    report = trained.evaluate(folder=layout)
    files = sorted((layout / "test").rglob("*.png"))
    scores, truth = [], []
    for file, anomaly_map in zip(files, _all_maps(trained, files), strict=True):
        enlarged = Image.fromarray(anomaly_map).resize((24, 24), Image.Resampling.BILINEAR)
        scores.append(np.asarray(enlarged).ravel())
        mask = layout / "ground_truth" / file.parent.name / f"{file.stem}_mask.png"
        marked = np.asarray(Image.open(mask)) > 0 if mask.exists() else np.zeros((24, 24), bool)
        truth.append(marked.ravel())
    pixels = report.pixel
    assert pixels is not None
    values, marks = np.concatenate(scores), np.concatenate(truth)
    assert pixels.auroc == pytest.approx(roc_auc_score(marks, values))
    assert pixels.average_precision == pytest.approx(average_precision_score(marks, values))
    assert (pixels.images, pixels.regions, pixels.without_mask) == (36, 16, 0)
    assert pixels.pixels == 36 * 24 * 24
    assert pixels.auroc > 0.7
    assert pixels.aupro is not None
    assert pixels.aupro > 0.3


def _all_maps(detector: Detector, files: list[Path]) -> list[np.ndarray]:
    from anoscan.images.files import find

    batches = detector._judge.measured(find(files), 64, wanted=Wanted(pictures=False))
    return [outcome.anomaly_map for batch in batches for outcome in batch]


def test_types_are_held_against_all_normal_images(trained: Detector, layout: Path) -> None:
    report = trained.evaluate(folder=layout)
    assert report.classes is not None
    rows = {row.name: row for row in report.classes}
    assert list(rows) == ["good", "left", "right"]
    assert (rows["good"].normal, rows["good"].anomalous, rows["good"].auroc) == (20, 0, None)
    assert rows["good"].false_alarm_rate == report.at_threshold.false_alarm_rate
    assert rows["good"].pixel is None
    scored = {
        Path(i.path).relative_to(layout / "test").parts: i.score
        for i in trained.score(layout / "test").images
    }
    for kind in TYPES:
        row = rows[kind]
        chosen = {key: value for key, value in scored.items() if key[0] in (kind, "good")}
        labels = [key[0] == kind for key in chosen]
        assert row.auroc == pytest.approx(roc_auc_score(labels, list(chosen.values())))
        assert (row.normal, row.anomalous, row.against) == (0, 8, "all normals")
        assert row.pixel is not None
        assert (row.pixel.images, row.pixel.regions) == (28, 8)
    found = [rows[kind].recall for kind in TYPES]
    assert np.mean([share for share in found if share is not None]) == report.at_threshold.recall


def test_a_class_with_normal_images_of_its_own_is_held_against_those(
    trained: Detector, digits: Digits, tmp_path: Path
) -> None:
    lines = digits.labels.read_text(encoding="utf-8").splitlines()[1:]
    csv = digits.labels.with_name("classes.csv")
    kinds = ["a", "b", ""]
    rows = [f"{line},{kinds[number % 3]}" for number, line in enumerate(lines)]
    csv.write_text("\n".join(["path,label,class", *rows]) + "\n", encoding="utf-8")
    report = trained.evaluate(csv)
    assert report.classes is not None
    assert [row.name for row in report.classes] == ["a", "b", None]
    assert {row.against for row in report.classes} == {"own normals"}
    assert sum(row.normal + row.anomalous for row in report.classes) == len(lines)
    assert report.pixel is None
    assert trained.evaluate(digits.labels).classes is None


def test_the_same_model_does_not_differ_from_itself(trained: Detector, digits: Digits) -> None:
    report = trained.evaluate(digits.labels, against=[trained])
    assert report.comparison is not None
    first, second = report.comparison
    assert (first.difference, first.difference_ci95) == (0, (0, 0))
    assert first == second
    assert first.auroc == report.auroc
    assert first.auroc_ci95 == report.auroc_ci95
    assert trained.evaluate(digits.labels).comparison is None


def test_the_interval_of_a_difference_is_that_of_paired_resampling() -> None:
    generator = np.random.default_rng(3)
    anomalous = np.repeat([False, True], 80)
    shared = generator.normal(size=160) + anomalous
    one, other = shared + 0.1 * generator.normal(size=160), shared
    found = metrics.difference(one, other, anomalous)
    assert found is not None
    by_hand = []
    for _ in range(300):
        drawn = np.concatenate([generator.integers(0, 80, 80), generator.integers(80, 160, 80)])
        by_hand.append(
            roc_auc_score(anomalous[drawn], one[drawn])
            - roc_auc_score(anomalous[drawn], other[drawn])
        )
    low, high = np.quantile(by_hand, (0.025, 0.975))
    assert found.ci95[0] == pytest.approx(low, abs=0.25 * (high - low))
    assert found.ci95[1] == pytest.approx(high, abs=0.25 * (high - low))
    single = metrics.detection(one, anomalous).auroc_ci95
    assert single is not None
    assert high - low < (single[1] - single[0]) / 3  # what pairing is for
    assert metrics.difference(one, other, np.ones(160, bool)) is None


def test_eval_of_the_layout_needs_no_csv_and_shows_types_pixels_and_models(
    run: Run, model_file: Path, layout: Path
) -> None:
    code, out, err = run("eval", layout, "--model", model_file, "--model", model_file)
    assert code == 0, err
    for words in ("left", "right", "good", "AUPRO", "best Dice uses labels", "difference"):
        assert words in out
    code, out, _ = run("eval", layout, "--model", model_file, "--json")
    document = json.loads(out)
    assert {"auroc", "average_precision", "aupro", "aupro_limit"} <= set(document["pixel"])
    assert document["pixel"]["aupro_limit"] == 0.3
    assert document["pixel"]["best_dice"]["uses_labels"] is True
    assert [row["name"] for row in document["classes"]] == ["good", "left", "right"]
    assert document["comparison"] is None


def test_score_of_the_layout_ranks_its_test_images_alone(
    run: Run, model_file: Path, layout: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code, out, err = run("score", layout, "--model", model_file, "--json")
    assert code == 0, err
    ranked = {image["path"] for image in json.loads(out)["images"]}
    assert ranked == {file.as_posix() for file in (layout / "test").rglob("*.png")}
    assert (layout / "test").as_posix() in err
    from_stdin = io.TextIOWrapper(io.BytesIO(str(layout).encode()))
    monkeypatch.setattr(sys, "stdin", from_stdin)
    code, out, err = run("score", "-", "--model", model_file, "--json")
    assert {image["path"] for image in json.loads(out)["images"]} == ranked
    assert (layout / "test").as_posix() in err
    report = Detector.load(model_file).score(layout)
    assert {image.path for image in report.images} == ranked


def test_plots_are_written_where_asked_and_results_stay_alone_on_stdout(
    run: Run, model_file: Path, digits: Digits, tmp_path: Path
) -> None:
    arguments = ("eval", "--labels", digits.labels, "--model", model_file, "--json")
    code, out, err = run(*arguments, "--plots", tmp_path / "plots")
    assert code == 0, err
    assert json.loads(out)["schema"] == "anoscan.eval/1"
    assert {"roc.svg", "scores.png"} <= {file.name for file in (tmp_path / "plots").iterdir()}
    assert f"plots: {tmp_path / 'plots'}" in err
    code, out, err = run(*arguments, "--plots", digits.labels)
    assert (code, out) == (2, "")
    assert f"--plots {digits.labels}" in err
    assert "is no folder" in err
    command = ["eval", "--labels", tmp_path / "no.csv", "--model", model_file]
    code, out, err = run(*command, "--plots", tmp_path / "deep" / "plots")
    assert code == 1
    assert not (tmp_path / "deep").exists()


def test_masks_that_cannot_be_used_are_listed_and_the_rest_measured(
    run: Run, model_file: Path, layout: Path, tmp_path: Path
) -> None:
    masks = tmp_path / "masks"
    shutil.copytree(layout / "ground_truth", masks)
    (masks / "left/0_mask.png").write_bytes(b"no image")
    Image.new("L", (3, 3)).save(masks / "left/1_mask.png")
    (masks / "right/0_mask.png").unlink()
    code, out, err = run("eval", layout, "--masks", masks, "--model", model_file, "--json")
    assert code == 3
    pixel = json.loads(out)["pixel"]
    assert [Path(item["path"]).name for item in pixel["skipped"]] == ["0_mask.png", "1_mask.png"]
    assert "3x3" in pixel["skipped"][1]["reason"]
    assert (pixel["without_mask"], pixel["regions"], pixel["images"]) == (1, 13, 33)
    assert "2 images could not be read" in err


def test_masks_that_are_named_and_not_there_are_counted_like_images_that_are_not(
    run: Run, model_file: Path, digits: Digits
) -> None:
    rows = digits.labels.read_text(encoding="utf-8").splitlines()[1:]
    csv = digits.labels.with_name("lost.csv")
    csv.write_text("\n".join(["path,label,mask", *(f"{row},no.png" for row in rows)]) + "\n")
    code, out, err = run("eval", "--labels", csv, "--model", model_file, "--json")
    pixel = json.loads(out)["pixel"]
    assert code == 0
    assert "no such mask: no.png\n" in err
    assert (pixel["auroc"], pixel["aupro"], pixel["without_mask"]) == (None, None, 150)
    assert "150 masks are missing" in pixel["undefined"]


def test_confusion_and_curves_are_those_of_the_scores(trained: Detector, digits: Digits) -> None:
    report = trained.evaluate(digits.labels)
    at = report.at_threshold
    hit = at.confusion
    assert hit.true_positive + hit.false_negative == report.images.anomalous
    assert hit.false_positive + hit.true_negative == report.images.normal
    assert at.recall == hit.true_positive / report.images.anomalous
    assert at.false_alarm_rate == hit.false_positive / report.images.normal
    curves = report.curves
    assert curves is not None
    area = np.trapezoid(curves.roc.recall, curves.roc.false_alarm_rate)
    assert area == pytest.approx(report.auroc, abs=0.005)
    assert (curves.roc.false_alarm_rate[0], curves.roc.recall[-1]) == (0, 1)
    assert (curves.precision_recall.recall[0], curves.precision_recall.recall[-1]) == (0, 1)
    assert sum(curves.scores.normal) == report.images.normal
    assert sum(curves.scores.anomalous) == report.images.anomalous
    assert len(curves.scores.edges) == len(curves.scores.normal) + 1
    assert len(json.dumps(to_json(report))) < 40_000


def test_curves_stay_short_however_many_images_there_are() -> None:
    anomalous = np.arange(50_000) % 2 == 0
    scores = np.random.default_rng(0).normal(size=50_000) + anomalous
    scores[0] = 1e30  # one far out must not ask for a bin every other score apart
    found = metrics.curves(scores, anomalous)
    assert found is not None
    assert max(len(found.roc.recall), len(found.precision_recall.recall)) <= 200
    assert len(found.scores.edges) <= 61
    area = np.trapezoid(found.roc.recall, found.roc.false_alarm_rate)
    assert area == pytest.approx(roc_auc_score(anomalous, scores), abs=2e-3)
    assert metrics.curves(scores, np.ones(50_000, bool)) is None


def test_training_on_the_layout_takes_the_good_images_and_says_so(
    run: Run, layout: Path, quick: dict[str, Any]
) -> None:
    code, out, err = run("train", layout, "--dry-run")
    assert code == 0, err
    assert json.loads(out)["images_found"] == 40
    notes: list[str] = []
    detector = Detector.train(
        layout, on_progress=lambda progress: notes.append(progress.note or ""), **quick
    )
    assert detector.report is not None
    assert detector.report.images.found == 40
    assert detector.reference.name == "digits"
    assert any("train/good is used" in note for note in notes)


def test_eval_of_good_and_bad_folders_and_of_splits_says_what_it_leaves_out(
    run: Run, model_file: Path, digits: Digits, tmp_path: Path
) -> None:
    rows = digits.labels.read_text().split()[1:]
    rows = [*rows[:4], *rows[-4:]]
    lines = ["image_path,label,label_index,split"]
    for row in rows:
        path, label = row.split(",")
        target = tmp_path / ("NG" if label == "1" else "ok") / Path(path).name
        target.parent.mkdir(exist_ok=True)
        shutil.copy(digits.labels.parent / path, target)
        inside = target.relative_to(tmp_path).as_posix()
        lines.append(f"{inside},{target.parent.name},{label},{'train' if row in rows[:2] else ''}")
    code, out, err = run("eval", tmp_path, "--model", model_file, "--json")
    assert code == 0, err
    found = json.loads(out)["images"]
    assert (found["normal"], found["anomalous"], found["unlabelled"]) == (4, 4, 0)
    csv = tmp_path / "samples.csv"
    csv.write_text("\n".join(lines))
    code, out, err = run("eval", "--labels", csv, "--model", model_file, "--json")
    assert code == 0, err
    document = json.loads(out)
    assert (document["images"]["normal"], document["images"]["anomalous"]) == (2, 4)
    assert [row["name"] for row in document["classes"]] == ["NG", "ok"]
    assert "left out: 2 rows of the split 'train'" in err
