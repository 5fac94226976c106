"""The doctor says what a training would be like, and what would go wrong, before it is begun."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from rich.console import Console
from torch import Tensor

from anoscan.cli import tables
from anoscan.core.config import TrainConfig
from anoscan.core.errors import UsageError
from anoscan.core.results import DoctorReport, to_json
from anoscan.core.runtime import Runtime
from anoscan.images.decode import ImageRule, decode
from anoscan.images.files import find
from anoscan.networks.architectures import Growing
from anoscan.networks.rotation_stage import RotationStage
from anoscan.networks.stages import Planned
from anoscan.training import doctor, trial
from tests.conftest import Digits

Examine = Callable[..., DoctorReport]


def examine(folder: Path, **settings: Any) -> DoctorReport:
    config = doctor.triable(settings)
    return doctor.examine([folder], config, device="cpu", precision="float32", workers=1)


@pytest.fixture
def no_trial(monkeypatch: pytest.MonkeyPatch) -> None:
    found = trial.Trial({"gan": 60.0, "total": 60.0}, 1e9, None)
    monkeypatch.setattr(trial, "run", lambda *args, **options: found)


def write(folder: Path, images: list[np.ndarray]) -> Path:
    folder.mkdir()
    for index, image in enumerate(images):
        Image.fromarray(image).save(folder / f"{index:04d}.png")
    return folder


def noise(n: int, height: int = 16, width: int = 16) -> list[np.ndarray]:
    drawn = np.random.default_rng(n).integers(0, 256, (n, height, width), np.uint8)
    return list(drawn)


def verdicts(report: DoctorReport) -> dict[str, str]:
    return {check.name: check.verdict for check in report.checks if check.verdict != "ok"}


def test_a_trial_gives_time_and_memory_of_each_part(few: Digits) -> None:
    report = examine(few.normal)
    assert report.images is not None
    facts = report.images
    seconds: dict[str, float] = facts["expected_seconds"]
    parts = ["reading", "gan", "rotation", "encoder", "reconstruction", "calibration", "total"]
    assert list(seconds) == parts
    assert all(value > 0 for part, value in seconds.items() if part != "reading")
    parts = sum(value for part, value in seconds.items() if part != "total")
    assert seconds["total"] == pytest.approx(parts, abs=0.5)
    assert 0.1 < facts["expected_memory_gb"] < 10
    assert facts["formats"] == {".png": 120}
    assert (facts["copies"], facts["constant"], facts["readable"]) == (0, 0, 120)
    check = {check.name: check for check in report.checks}["training"]
    assert "Training takes about" in check.message
    json.dumps(to_json(report), allow_nan=False)


class Slow:
    """A stage whose steps take a second each, by a clock of its own."""

    name, slow_down = "slow", 1.0

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.now, self.steps = 0.0, list[int]()
        patch.setattr(time, "monotonic", lambda: self.now)

    def step(self, index: int) -> dict[str, Tensor]:
        self.steps.append(index)
        # Every eighth step costs more, as one with a penalty does.
        self.now += 8.0 if index % 8 == 0 else 1.0
        return {}


def test_the_trial_of_a_stage_takes_few_steps_and_whole_cycles_of_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    stage: Any = Slow(monkeypatch)
    cpu = Runtime.resolve("cpu", "float32", 1)
    expected = trial._expected(Planned(stage, 1000, 8), 8, cpu)
    assert expected == pytest.approx(1000 * 15 / 8)
    assert len(stage.steps) == 1 + 8, "one to set up; a cycle is longer than the time for trying"


def bad_folders() -> dict[str, tuple[list[np.ndarray], dict[str, str]]]:
    good = noise(600)
    flat = [np.full((16, 16), grey, np.uint8) for grey in range(40)] * 1
    return {
        "copies": (good[:420] + good[:180], {"duplicates": "warn", "calibration": "warn"}),
        "twenty": (good[:20], {"images": "fail", "calibration": "warn"}),
        "blank": (flat, {"images": "fail", "calibration": "warn", "constant": "fail"}),
        "sizes": (good + noise(60, 16, 40), {"sizes": "warn", "calibration": "warn"}),
        "four": (good[:4], {"images": "fail"}),
        "same": ([good[0]] * 30, {"duplicates": "fail"}),
    }


@pytest.mark.usefixtures("no_trial")
@pytest.mark.parametrize("name", ["copies", "twenty", "blank", "sizes", "four", "same"])
def test_what_would_go_wrong_is_said_before_training(name: str, tmp_path: Path) -> None:
    images, expected = bad_folders()[name]
    found = verdicts(examine(write(tmp_path / name, images)))
    assert {key: found.get(key) for key in expected} == expected
    assert set(found) - set(expected) <= {"images", "duplicates", "training"}


@pytest.mark.usefixtures("no_trial")
def test_a_good_folder_gets_no_warning_and_what_is_skipped_is_counted(tmp_path: Path) -> None:
    folder = write(tmp_path / "good", noise(1100))
    assert verdicts(examine(folder)) == {}
    (folder / "broken.png").write_bytes(b"no image")
    report = examine(folder)
    assert verdicts(report) == {"unreadable": "warn"}
    assert report.images is not None
    assert report.images["skipped"] == 1


def test_memory_and_time_that_are_not_there_are_warned_of(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "_memory_gb", lambda: 2.0)

    def verdict(seconds: float, memory: float) -> str:
        return doctor._cost_check(trial.Trial({"total": seconds}, memory, None), 1.0).verdict

    assert verdict(60, 1e9) == "ok"
    assert verdict(60, 1.9e9) == "warn"
    assert verdict(1e5, 1e9) == "warn"


@pytest.mark.usefixtures("no_trial")
def test_the_report_fits_a_terminal(tmp_path: Path) -> None:
    console = Console(width=80, record=True)
    for part in tables.render(examine(write(tmp_path / "n", noise(30)))):
        console.print(part)
    text = console.export_text()
    assert max(map(len, text.splitlines())) <= 80
    assert "gan: 60," in text


def test_later_stages_are_tried_on_networks_that_have_grown(
    few: Digits, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trial, "PLACES", (0.125,))
    levels: list[int] = []
    step = RotationStage.step

    def spy(stage: RotationStage, index: int) -> dict[str, Tensor]:
        assert isinstance(stage.discriminator, Growing)
        levels.append(stage.discriminator.level)
        return step(stage, index)

    monkeypatch.setattr(RotationStage, "step", spy)
    files = find([few.normal])
    config = TrainConfig(
        size=16, channels=1, architecture="progressive", width=4, latent_dim=4, images_shown=64,
        rotation_images_shown=64, encoder_images_shown=32, learning_rate=1e-3, batch_size=8,
    )  # fmt: skip
    rule = ImageRule(size=16, channels=1, window=None)
    pixels = np.stack([decode(file, rule).pixels for file in files[:16]])
    trial.run(pixels, config, rule, Runtime.resolve("cpu"), trained=100, held_out=10)
    assert levels
    assert set(levels) == {0}


def test_the_training_of_other_settings_can_be_tried(tmp_path: Path) -> None:
    folder = write(tmp_path / "n", noise(30, 32, 32))
    first, other = examine(folder).images, examine(folder, size=16, images_shown=64_000).images
    assert first is not None
    assert other is not None
    assert (first["model_size"], first["images_shown"]) == (32, 12_000)
    assert (other["model_size"], other["images_shown"]) == (16, 64_000)


@pytest.mark.parametrize("settings", [{"patches": 9}, {"calibration_folds": 2}, {"size": 3}])
def test_what_cannot_be_tried_is_refused(settings: dict[str, int]) -> None:
    with pytest.raises(UsageError, match="--" + next(iter(settings)).replace("_", "-")):
        doctor.triable(settings)


@pytest.mark.parametrize("side", [64, 16])
def test_images_that_become_much_smaller_are_said_before_the_training(
    side: int, tmp_path: Path, no_trial: None
) -> None:
    report = examine(write(tmp_path / "images", noise(12, side, side)), size=16)
    found = {check.name: check.message for check in report.checks}
    assert ("resolution" in found) == (side == 64)
    assert "Images become 4.0 times smaller" in found.get("resolution", "") or side == 16
