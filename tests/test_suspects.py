from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from anoscan import images, suspects
from anoscan.cli import main
from anoscan.detector import Detector
from anoscan.errors import InputError, UsageError
from anoscan.images import decode
from anoscan.scoring import fit_sums, fit_terms, term_sums
from tests.conftest import Digits

STRANGERS = 10


@pytest.fixture(scope="module")
def mixed(digits: Digits, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Normal digits, and a few that something happened to."""
    folder = tmp_path_factory.mktemp("mixed")
    for file in sorted(digits.normal.iterdir())[:190]:
        shutil.copy(file, folder)
    rng = np.random.default_rng(0)
    for number, file in enumerate(sorted(digits.normal.iterdir())[200 : 200 + STRANGERS]):
        with Image.open(file) as image:
            pixels = np.asarray(image)
        changed = (
            255 - pixels,
            rng.permutation(pixels),
            pixels // 4 + 128,
            np.roll(pixels, 4, axis=1),
            np.where(rng.random(pixels.shape) < 0.3, 255, pixels).astype(np.uint8),
        )[number % 5]
        Image.fromarray(changed).save(folder / f"stranger-{file.name}")
    return folder


def test_strangers_are_among_the_first_tenth(trained: Detector, mixed: Path) -> None:
    ranking = suspects.rank(trained, images.find([mixed]), lambda progress: None)
    found = ranking.report.images
    assert len(found) == 190 + STRANGERS
    assert sum("stranger" in image.path for image in found[:20]) >= 7
    assert [image.rank for image in found] == list(range(1, 201))
    assert [image.score for image in found] == sorted((i.score for i in found), reverse=True)
    # Of 199 others none is as odd as the first, and all are as odd as the last.
    assert found[0].p_value == pytest.approx(1 / 200)
    assert found[-1].p_value == pytest.approx(1)
    assert len(ranking.worst) == 20


def test_parts_added_up_give_the_fit_of_the_whole(trained: Detector, mixed: Path) -> None:
    model = trained.model
    pixels = [decode(image, model.rule).pixels for image in images.find([mixed])[:60]]
    x = torch.from_numpy(np.stack(pixels))
    whole = fit_terms(model.networks, ["density"], [x])
    parts = [term_sums(model.networks, ["density"], [x[i::3]]) for i in range(3)]
    summed = fit_sums(parts)
    for key, value in whole["density"].items():
        np.testing.assert_allclose(summed["density"][key], value, rtol=2e-3, atol=1e-4)
    rest = fit_sums(parts[:2])
    assert not np.allclose(rest["density"]["mean"], whole["density"]["mean"], atol=1e-6)


def test_suspects_on_the_command_line_list_all_images(
    trained: Detector,
    mixed: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    command = ["anoscan", "suspects", str(mixed), "--model", trained.reference.path]
    monkeypatch.setattr("sys.argv", [*command, "--json"])
    with pytest.raises(SystemExit) as stop:
        main()
    assert stop.value.code == 0
    document = json.loads(capsys.readouterr().out)
    assert document["schema"] == "anoscan.suspects/1"
    assert set(document["images"][0]) == {"rank", "path", "score", "p_value"}
    assert len(document["images"]) == 200
    monkeypatch.setattr("sys.argv", command)
    with pytest.raises(SystemExit):
        main()
    out = capsys.readouterr().out
    assert "stranger" in out
    assert "look at them" in out


def test_suspects_are_dropped_from_what_is_learned_and_not_from_what_is_held_out(
    few: Digits, tmp_path: Path, quick: dict[str, int]
) -> None:
    options = quick | {"rotation_images_shown": 64, "workers": 1}
    detector, ranking = suspects.train(
        [few.normal],
        drop=True,
        on_progress=lambda progress: None,
        path=tmp_path / "clean.safetensors",
        **options,
    )
    report = detector.report
    assert report is not None
    held = report.images.held_out
    assert report.images.dropped >= 8
    assert report.images.trained + held + report.images.dropped == 120
    assert held == 30
    assert len(ranking.worst) == 12
    assert len(detector.model.yardstick.terms) == held
    assert detector.model.metadata["training_data"]["dropped"] == report.images.dropped


def test_what_cannot_be_done_is_said(trained: Detector, few: Digits, tmp_path: Path) -> None:
    some = images.find([few.normal])[:10]
    with pytest.raises(InputError, match="too few"):
        suspects.rank(trained, some, lambda progress: None)
    with pytest.raises(UsageError, match="trains twice"):
        suspects.train([few.normal], drop=True, on_progress=lambda progress: None, resume=True)
