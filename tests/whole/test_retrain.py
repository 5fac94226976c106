"""A model is trained again on new images, and the old one stands beside the new one."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from anoscan.core.results import AtThreshold, ComparedModel, Confusion, ModelReference
from anoscan.detector import Detector
from anoscan.evaluation import succession
from anoscan.model import history, store
from tests.cli.test_cli import SKIPPED, Run, check_train, run
from tests.conftest import Digits

__all__ = ["run"]  # a fixture

TINY: dict[str, Any] = {"images_shown": 64, "encoder_images_shown": 64, "width": 4, "workers": 1}
ROW = {
    "model", "anomalous_share", "false_alarm_rate", "threshold", "score_median",
    "calibration_median", "fits",
}  # fmt: skip


@pytest.fixture
def old(few: Digits, tmp_path: Path) -> Path:
    """A model with settings that are no defaults, in the store."""
    mask = tmp_path / "mask.png"
    Image.new("L", (8, 8), 255).save(mask)
    with Image.open(mask) as image:
        image.paste(0, (0, 0, 8, 1))
        image.save(mask)
    shown = TINY | {"seed": 3, "size": 20, "latent_dim": 7}
    return Path(Detector.train(few.normal, name="old", roi=mask, **shown).reference.path)


@pytest.fixture
def newer(few: Digits, tmp_path: Path) -> Path:
    """Other images: brighter ones."""
    folder = tmp_path / "newer"
    folder.mkdir()
    for file in few.normal.iterdir():
        with Image.open(file) as image:
            image.point(lambda value: value * 0.6 + 90).save(folder / file.name)
    (folder / "broken.png").write_bytes(b"no image")
    return folder


def test_settings_and_region_stay_and_both_models_are_compared(
    run: Run, old: Path, newer: Path, few: Digits
) -> None:
    before = old.read_bytes()
    result = run("retrain", "old", newer, "--labels", few.labels, "--json", "--workers", 1)
    assert result.code == 3, result.err  # an image could not be read
    document = result.json
    assert set(document) == {
        "schema", "train", "replaced", "held_out", "old", "new", "labelled", "warning",
    }  # fmt: skip
    assert document["schema"] == "anoscan.retrain/1"
    check_train(document["train"])
    assert [set(item) for item in document["train"]["images"]["skipped"]] == [SKIPPED]
    assert document["replaced"]
    assert set(document["old"]) == set(document["new"]) == ROW
    first, second = document["labelled"]
    assert first["model"] == document["old"]["model"]
    assert second["model"] == document["new"]["model"] != first["model"]
    assert first["difference"] == 0
    assert second["difference"] == pytest.approx(second["auroc"] - first["auroc"])
    assert second["difference_ci95"][0] <= second["difference"] <= second["difference_ci95"][1]
    # The old model was not made for such bright images, and the new one was.
    assert document["held_out"] == 30
    assert document["old"]["anomalous_share"] > 0.5 > document["new"]["anomalous_share"]
    assert (document["old"]["fits"], document["new"]["fits"]) == (False, True)

    loaded = Detector.load("old", workers=1).model
    settings = loaded.config
    assert (settings.seed, settings.size, settings.latent_dim, settings.width) == (3, 20, 7, 4)
    assert loaded.rule.roi is not None
    event = history.events(old)[-1]
    assert (event.action, event.folders, event.images) == ("retrain", (str(newer),), 90)
    store.restore("old")
    assert old.read_bytes() == before


def test_the_same_images_give_the_same_model(run: Run, old: Path, few: Digits) -> None:
    before = old.read_bytes()
    result = run("retrain", "old", few.normal, "--name", "again", "--workers", 1)
    assert result.code == 0, result.err
    assert "held-out normals of the new folder" in result.out
    assert store.path_for("again").read_bytes() == before == old.read_bytes()


def test_a_name_that_is_taken_needs_force(run: Run, old: Path, few: Digits) -> None:
    shutil.copy(old, store.path_for("other"))
    result = run("retrain", "old", few.normal, "--name", "other")
    assert (result.code, "--force" in result.err) == (1, True)


def test_labels_that_cannot_be_used_are_said_before_the_training(
    run: Run, old: Path, few: Digits, tmp_path: Path
) -> None:
    before = old.read_bytes()
    (tmp_path / "bad.csv").write_text("path,label\nx.png,perhaps\n")
    result = run("retrain", "old", few.normal, "--labels", tmp_path / "bad.csv")
    assert (result.code, "bad.csv" in result.err) == (1, True)
    assert old.read_bytes() == before


def test_a_model_file_outside_the_store_is_replaced_where_it_is(
    run: Run, old: Path, few: Digits, tmp_path: Path
) -> None:
    file = tmp_path / "m.safetensors"
    shutil.copy(old, file)
    first = sorted(few.normal.iterdir())[:60]
    assert run("retrain", file, *first, "--quiet", "--workers", 1).code == 0
    assert file.read_bytes() != old.read_bytes()
    assert run("models", "restore", file).code == 0
    assert file.read_bytes() == old.read_bytes()
    assert not os.path.lexists(store.path_for("m"))


def test_the_warning_needs_a_difference_that_is_certain() -> None:
    confusion = Confusion(true_positive=0, false_positive=0, false_negative=0, true_negative=0)
    at = AtThreshold(
        score=0, false_alarm_rate=None, recall=None, precision=None, f1=None, confusion=confusion
    )

    def row(interval: tuple[float, float] | None) -> ComparedModel:
        return ComparedModel(
            model=ModelReference(name="", path="", sha256=""), images=9, auroc=0.5,
            auroc_ci95=None, average_precision=None, difference=None, difference_ci95=interval,
            at_threshold=at, pixel=None, curves=None,
        )  # fmt: skip

    assert succession.caveat(None) is None
    assert succession.caveat([row(None), row(None)]) is None
    assert succession.caveat([row(None), row((-0.2, 0.1))]) is None
    assert "worse" in (succession.caveat([row(None), row((-0.2, -0.1))]) or "")
