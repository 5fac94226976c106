"""Large images at several scales: one score, one map, and the same promise."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from scipy.special import logsumexp
from skimage import data

from anoscan import cli, modelfile, saved, scoring
from anoscan.atlas import Atlas
from anoscan.calibration import Scale
from anoscan.detector import Detector
from anoscan.errors import ModelError, UsageError
from anoscan.images import decode, find
from anoscan.results import to_json
from anoscan.roi import Cover, Roi
from anoscan.scales import coarser
from anoscan.scores import DEFAULT_SCORE, SCORES, at_scale, scale_steps, scales_of
from anoscan.tiles import Canvas

PIECE = 80
QUICK: dict[str, Any] = {
    "patches": 60, "patch_size": 16, "images_shown": 64, "encoder_images_shown": 32,
    "rotation_images_shown": 0, "batch_size": 16, "width": 4, "latent_dim": 4, "workers": 1,
}  # fmt: skip
BOTH = (1, 2)


def pieces(folder: Path, texture: np.ndarray, corners: list[tuple[int, int]]) -> Path:
    folder.mkdir()
    for number, (top, left) in enumerate(corners):
        piece = texture[top : top + PIECE, left : left + PIECE]
        Image.fromarray(piece).save(folder / f"{number:02}.png")
    return folder


@dataclasses.dataclass(frozen=True)
class Grass:
    """Pieces of grass, and a model of some of them that was calibrated with others."""

    model: Path
    queries: Path


@pytest.fixture(scope="module")
def grass(tmp_path_factory: pytest.TempPathFactory) -> Grass:
    folder = tmp_path_factory.mktemp("grass")
    corners = [(y, x) for y in range(0, 512 - PIECE, 43) for x in range(0, 512 - PIECE, 86)]
    mixed = [corners[i] for i in np.random.default_rng(0).permutation(len(corners))]
    texture = data.grass()
    normal = pieces(folder / "normal", texture, mixed[:10])
    queries = pieces(folder / "queries", texture, mixed[10:28])
    path = folder / "m.safetensors"
    detector = Detector.train(normal, path=path, **QUICK)
    detector.calibrate([pieces(folder / "new", texture, mixed[28:50])])
    return Grass(path, queries)


def test_scales_are_read_from_a_list() -> None:
    assert scale_steps("1") == (1,)
    assert scale_steps("0.5, 1,0.5") == (1, 2)
    assert scale_steps("1,0.25,0.5") == (1, 2, 4)
    for wrong in ("", "0.5", "1,2", "1,half"):
        with pytest.raises(UsageError, match="--scales"):
            scale_steps(wrong)
    assert scales_of(["density", at_scale("density", 4)]) == (1, 4)


def test_one_scale_scores_as_ever(grass: Grass) -> None:
    alone = Detector.load(grass.model).score(grass.queries)
    said = Detector.load(grass.model, scales=(1,)).score(grass.queries)
    assert said.images == alone.images


def test_the_score_of_two_scales_counts_terms_of_both_each_on_its_own_scale(grass: Grass) -> None:
    detector = Detector.load(grass.model, scales=BOTH)
    report = detector.score(grass.queries)
    model = detector.model
    (coarse, _) = model.yardstick.coarse
    weights = np.array([SCORES[DEFAULT_SCORE].weights.get(name, 0) for name in model.fitted])
    weights = weights * model.yardstick.trust
    assert model.yardstick.tiles is not None
    for found in report.images[:3]:
        decoded = decode(find([found.path])[0], model.rule)
        logs = []
        for step, moments in ((1, model.yardstick.tiles), (2, coarse.tiles)):
            shown = decoded if step == 1 else coarser(decoded, step, model.rule)
            tiled = scoring.measure_tiled(
                model.networks, model.fitted, shown, model.rule, detector.runtime.device,
                picture=False,
            )  # fmt: skip
            standard = Scale.of_tiles(moments, weights).standardise(tiled.measured.terms)[0]
            logs.append((standard * weights)[weights > 0])
            for name, value in zip(model.fitted, standard, strict=True):
                if name in SCORES[DEFAULT_SCORE].weights:
                    assert found.terms[at_scale(name, step)] == pytest.approx(value, abs=1e-6)
        both = np.concatenate(logs)
        assert found.score == pytest.approx(logsumexp(both) - np.log(len(both)), abs=1e-6)


def test_false_alarms_at_two_scales_are_as_rare_as_promised(grass: Grass) -> None:
    detector = Detector.load(grass.model, scales=BOTH)
    report = detector.score(grass.queries, false_alarm_rate=0.1)
    assert len(detector.calibration_scores()) == 22
    # 18 normal images: more than five alarms have a chance of 1 in 100.
    assert report.counts["anomalous"] <= 5
    assert sum(bool(found.regions) for found in report.images) <= 5


def test_the_map_of_two_scales_is_the_highest_of_both_in_the_same_units(
    grass: Grass, tmp_path: Path
) -> None:
    found = {}
    for name, steps in (("one", (1,)), ("both", BOTH)):
        detector = Detector.load(grass.model, scales=steps)
        report = detector.score(grass.queries, maps=Atlas(tmp_path / name, ("npy",)))
        maps = [image.maps for image in sorted(report.images, key=lambda image: image.path)]
        found[name] = np.stack([np.load(files["npy"]) for files in maps if files])
    one, both = found["one"], found["both"]
    assert (both >= one).all()
    assert 0.1 < (both > one).mean() < 0.9
    model = Detector.load(grass.model).model
    assert model.maps is not None
    assert (both > model.maps.scale.brightest).mean() < 0.01
    _, joined = model.at(BOTH)
    assert (joined.region_peaks >= model.yardstick.region_peaks).all()
    assert (joined.region_peaks > model.yardstick.region_peaks).any()


def test_an_image_too_small_for_a_scale_is_skipped_and_others_are_scored(
    grass: Grass, tmp_path: Path
) -> None:
    folder = pieces(tmp_path / "mixed", data.grass(), [(0, 0)])
    Image.fromarray(data.grass()[:40, :30]).save(folder / "small.png")
    report = Detector.load(grass.model, scales=BOTH).score(folder)
    assert [Path(image.path).name for image in report.images] == ["00.png"]
    (skipped,) = report.skipped
    assert skipped.reason == "is 30x40 pixels: smaller at scale 0.5 than the model's patches"


def test_what_a_model_cannot_do_at_several_scales_is_said(
    grass: Grass, model_file: Path, tmp_path: Path
) -> None:
    with pytest.raises(ModelError, match="needs a model of patches"):
        Detector.load(model_file, scales=BOTH)
    tensors, metadata = modelfile.load(grass.model)
    older = {name: value for name, value in tensors.items() if "scale" not in name}
    metadata = {key: value for key, value in metadata.items() if key != "format"}
    modelfile.save(tmp_path / "older.safetensors", older, metadata)
    assert Detector.load(tmp_path / "older.safetensors").score(grass.queries).images
    with pytest.raises(ModelError, match=r"no normal image at scale 0\.5"):
        Detector.load(tmp_path / "older.safetensors", scales=BOTH)
    with pytest.raises(UsageError, match="--scales needs a score"):
        Detector.load(grass.model, scales=BOTH).score(grass.queries, score="paper")


def test_a_report_of_saved_results_looks_at_the_same_scales(grass: Grass) -> None:
    report = Detector.load(grass.model, scales=BOTH).score(grass.queries)
    found = saved.detector(to_json(report), None, "cpu", 1, pytest.fail)
    assert found is not None
    assert found.score_terms() == tuple(report.images[0].terms)


def test_the_commands_take_scales(
    grass: Grass, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["anoscan", "score", str(grass.queries), "--model", str(grass.model), "--json"]
    monkeypatch.setattr("sys.argv", [*command, "--scales", "1,0.5"])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    assert stop.value.code == 0
    (first, *_) = json.loads(capsys.readouterr().out)["images"]
    assert {"density", "density@0.5"} <= set(first["terms"])
    monkeypatch.setattr("sys.argv", [*command, "--scales", "0.5"])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    assert stop.value.code == 2


def test_a_coarser_canvas_is_made_of_means_of_what_counts() -> None:
    samples = np.random.default_rng(0).integers(0, 255, (11, 14, 3)).astype(np.uint8)
    canvas = Canvas(samples, 3, None)
    small = canvas.coarser(2)
    assert (small.height, small.width) == (5, 7)
    expected = (samples[2:4, 6:8] / 127.5 - 1).mean((0, 1))
    assert np.allclose(small.whole()[:, 1, 3], expected, atol=1e-6)
    inside = np.zeros((11, 14), bool)
    inside[:, :5] = True
    outside = samples.copy()
    outside[:, 5:] = 0
    covered = [Canvas(s, 3, None, Cover.grey(Roi.of(inside), 3)) for s in (samples, outside)]
    assert np.array_equal(covered[0].coarser(2).whole(), covered[1].coarser(2).whole())
