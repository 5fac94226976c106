"""The exported file gives the results of anoscan, and nothing is written where it does not."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from anoscan.cli.app import app
from anoscan.core.errors import ExitCode, InputError, ModelError, UsageError
from anoscan.core.results import ExportReport
from anoscan.detector import Detector
from anoscan.export import graph, onnx_file, parity, real_images
from anoscan.scoring.choices import ScoreRequest
from tests.conftest import Digits

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxscript")
pytest.importorskip("onnxruntime")
ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def exported(
    model_file: Path, digits: Digits, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Detector, Path, ExportReport]:
    detector = Detector.load(model_file, device="cpu", workers=1)
    folder = tmp_path_factory.mktemp("exported") / "made"
    return detector, folder, export(model_file, folder)


def export(model: Path, folder: Path) -> ExportReport:
    return onnx_file.export(*onnx_file.read(model, 1), folder, ScoreRequest())


def outputs(file: Path, samples: np.ndarray) -> dict[str, np.ndarray]:
    running = parity.session(file)
    return dict(
        zip(graph.OUTPUTS, running.run(list(graph.OUTPUTS), {"image": samples}), strict=True)
    )


def some(detector: Detector, digits: Digits) -> np.ndarray:
    found = real_images.gather(detector.model, Path("none"), [digits.queries], 1)
    return found.samples


def test_it_gives_the_scores_p_values_and_maps_of_score(
    exported: tuple[Detector, Path, ExportReport], digits: Digits
) -> None:
    detector, folder, report = exported
    files = sorted(digits.queries.iterdir())
    found = detector.predict([str(file) for file in files], maps=True)
    samples = np.stack([_resized(file, detector.model.rule.size)[None] for file in files])
    got = outputs(folder / "model.onnx", samples)
    np.testing.assert_allclose(got["score"], found.scores, atol=1e-4)
    np.testing.assert_array_equal(got["p_value"], found.p_values)
    np.testing.assert_array_equal(got["score"] > report.threshold.score, found.anomalous)
    peaks = np.array([anomaly_map.max() for anomaly_map in found.maps])
    assert np.corrcoef(got["map"].max((1, 2)), peaks)[0, 1] > 0.9  # these have the files' size
    assert 0 < found.anomalous.sum() < len(files)


def _resized(file: Path, size: int) -> np.ndarray:
    with Image.open(file) as image:
        return np.asarray(image.resize((size, size), Image.Resampling.BILINEAR))


@pytest.mark.parametrize("count", [1, 3])
def test_a_batch_may_have_any_size_and_changes_no_score(
    exported: tuple[Detector, Path, ExportReport], digits: Digits, count: int
) -> None:
    detector, folder, _ = exported
    samples = some(detector, digits)
    whole = outputs(folder / "model.onnx", samples)
    part = outputs(folder / "model.onnx", samples[:count])
    for name in graph.OUTPUTS:
        np.testing.assert_allclose(part[name], whole[name][:count], atol=2e-3)


def test_the_card_says_how_to_use_the_file(exported: tuple[Detector, Path, ExportReport]) -> None:
    detector, folder, report = exported
    card = json.loads((folder / "card.json").read_text(encoding="ascii"))
    size = detector.model.rule.size
    assert card["schema"] == "anoscan.card/1"
    assert card["input"]["name"] == "image"
    assert (card["input"]["dtype"], card["input"]["shape"]) == ("uint8", ["n", 1, size, size])
    assert set(card["outputs"]) == {"score", "p_value", "map", "reconstruction"}
    assert card["threshold"]["score"] == detector.threshold().score == report.threshold.score
    assert card["calibration"]["images"] == len(detector.calibration_scores())
    assert card["file"]["sha256"] == report.sha256
    assert card["file"]["opset"] == 18
    assert card["parity"]["passed"]
    assert card["parity"]["source"] == "training"
    assert card["parity"]["images"] == card["parity"]["with_defects"] == real_images.MOST
    assert 0 < card["parity"]["anomalous"] < 2 * real_images.MOST
    assert str(ROOT) not in json.dumps(card)
    assert detector.reference.path not in json.dumps(card)


def test_the_file_names_nothing_of_this_machine(
    exported: tuple[Detector, Path, ExportReport],
) -> None:
    content = (exported[1] / "model.onnx").read_bytes()
    assert str(ROOT).encode() not in content
    assert os.fsencode(Path(torch.__file__).parent) not in content


def test_the_example_ranks_as_score_does(
    exported: tuple[Detector, Path, ExportReport], digits: Digits
) -> None:
    detector, folder, _ = exported
    files = sorted(digits.queries.iterdir())[::40]
    script = ROOT / "docs" / "onnx_example.py"
    assert len(script.read_text(encoding="utf-8").splitlines()) <= 60
    assert "anoscan" not in {line.split()[1] for line in _imports(script)}
    run = [sys.executable, str(script), str(folder), *map(str, files)]
    lines = subprocess.run(run, check=True, capture_output=True, text=True).stdout.splitlines()
    report = detector.score([*map(str, files)])
    for line, image in zip(lines, report.images, strict=True):
        score, p_value, verdict, path, _ = line.split("\t")
        assert (path, verdict) == (image.path, image.verdict)
        assert float(score) == pytest.approx(image.score, abs=2e-4)
        assert float(p_value) == pytest.approx(image.p_value, abs=1e-4)


def _imports(script: Path) -> list[str]:
    lines = script.read_text(encoding="utf-8").splitlines()
    return [line for line in lines if line.startswith(("import ", "from "))]


def changed(folder: Path, name: str, factor: float, where: Path) -> Path:
    """Write the graph with a constant multiplied, which stands for any error of a runtime."""
    found = onnx.load(folder / "model.onnx")
    (constant,) = [c for c in found.graph.initializer if c.name == name]
    values = onnx.numpy_helper.to_array(constant) * factor
    constant.CopyFrom(onnx.numpy_helper.from_array(values.astype(values.dtype), name))
    onnx.save(found, where)
    return where


@pytest.mark.parametrize(
    ("name", "factor", "said"),
    [
        ("weights", 1.5, "the score differs by up to"),
        ("deviation", 0.5, "verdicts of 128 images differ"),
        ("measuring.parts.discriminator.blocks.0.1.bias", 3.0, "the map differs by up to"),
    ],
)
def test_an_altered_graph_is_refused(
    exported: tuple[Detector, Path, ExportReport],
    tmp_path: Path,
    name: str,
    factor: float,
    said: str,
) -> None:
    detector, folder, report = exported
    judge = detector._judge
    file = changed(folder, name, factor, tmp_path / "altered.onnx")
    images = real_images.gather(detector.model, Path(detector.reference.path), (), 1)
    found = parity.check(detector.model, judge.scorer, file, images, report.threshold.score)
    assert not found.passed
    with pytest.raises(ModelError, match=said):
        parity.refuse(found, "bolts")


def test_a_changed_order_of_near_scores_counts() -> None:
    ours, theirs = np.array([3.0, 2.0, 1.0]), np.array([2.0, 3.0, 1.0])
    assert parity._swapped(ours, ours) == 0
    assert parity._swapped(ours, theirs) == 1
    assert parity._swapped(np.array([1, 1 + parity.TIE / 2]), np.array([1, 0.9])) == 0


def test_a_failed_check_leaves_nothing_behind(
    exported: tuple[Detector, Path, ExportReport], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    detector, folder, _ = exported

    def altered(model: object, scorer: object, path: Path) -> None:
        changed(folder, "weights", 1.5, path)

    monkeypatch.setattr(graph, "scoring_file", altered)
    with pytest.raises(ModelError, match="does not give the results of anoscan"):
        export(Path(detector.reference.path), tmp_path / "out")
    assert not list((tmp_path / "out").iterdir())


def test_what_cannot_be_exported_is_named(
    exported: tuple[Detector, Path, ExportReport], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, fails = exported[0].model, {"density"}

    def recorded(made: graph.Scoring | graph.Measuring, *_: object) -> None:
        inside = made.measuring if isinstance(made, graph.Scoring) else made
        if fails & {*inside._names}:
            raise RuntimeError("no such operation\nmore")

    monkeypatch.setattr(graph, "_recorded", recorded)
    with pytest.raises(ModelError, match=r"the term density of this model .* no such operation\."):
        graph.scoring_file(model, exported[0]._judge.scorer, tmp_path / "model.onnx")


def test_models_of_patches_are_refused_by_name(
    exported: tuple[Detector, Path, ExportReport],
) -> None:
    model = exported[0].model
    of_patches = {**model.metadata["image_rule"], "patch": 64}
    model = dataclasses.replace(model, metadata=model.metadata | {"image_rule": of_patches})
    with pytest.raises(ModelError, match="bolts cannot be exported: it learned from patches"):
        graph.check_exportable(model, "bolts")
    roi = {"height": 1, "width": 2, "bits": "gA=="}
    padded = {**exported[0].model.metadata["image_rule"], "roi": roi, "fit": "pad"}
    model = dataclasses.replace(model, metadata=model.metadata | {"image_rule": padded})
    with pytest.raises(ModelError, match="because of --fit pad"):
        graph.check_exportable(model, "bolts")


def test_without_real_images_nothing_is_exported(
    exported: tuple[Detector, Path, ExportReport], tmp_path: Path
) -> None:
    detector = exported[0]
    with pytest.raises(InputError, match="learned from cannot be read again"):
        real_images.gather(detector.model, tmp_path / "bolts.safetensors", (), 1)


def test_samples_survive_the_way_to_the_networks_and_back(
    exported: tuple[Detector, Path, ExportReport],
) -> None:
    rule = exported[0].model.rule
    samples = np.arange(256, dtype=np.uint8).reshape(4, 1, 8, 8)
    rule = dataclasses.replace(rule, size=8)
    np.testing.assert_array_equal(
        real_images.as_input(real_images.as_seen(samples, rule), rule), samples
    )


def test_commands_say_what_is_wrong(model_file: Path, tmp_path: Path) -> None:
    run = CliRunner().invoke
    made = tmp_path / "model.onnx"
    made.touch()
    asked = ["export", str(model_file), "--output", str(tmp_path)]
    refused = run(app, asked)
    assert isinstance(refused.exception, ModelError)
    assert "exists already" in refused.exception.message
    assert refused.exception.exit_code == ExitCode.FAILED
    wrong = run(app, [*asked, "--format", "tflite"])
    assert isinstance(wrong.exception, UsageError)
    assert "--format must be one of onnx" in wrong.exception.message


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(graph, "_NEEDED", ("onnx", "nothing_of_that_name"))
    with pytest.raises(UsageError, match="export needs the package nothing_of_that_name"):
        graph.check_installed("export")


@pytest.mark.slow
@pytest.mark.parametrize(
    "settings",
    [
        {"architecture": "mlp"},
        {"architecture": "resnet", "size": 20},
        {"architecture": "progressive"},
        {"encoder": "vae", "size": 17},
        {"align": "off", "size": 32},
        {"size": 100},
        {"reconstruction_images_shown": 0},
        {"backbone": "efficientnet-lite0", "images_shown": 0, "size": 32},
    ],
)
def test_every_kind_of_model_can_be_exported(
    few: Digits, quick: dict[str, int], tmp_path: Path, settings: dict[str, Any]
) -> None:
    path = tmp_path / "model.safetensors"
    Detector.train(few.normal, path=path, workers=1, **(quick | settings))
    report = export(path, tmp_path / "out")
    assert report.parity.passed
    assert onnx_file.FILE in report.file
