"""A folder becomes a model: interrupted, resumed, and the same bytes for the same seed."""

from __future__ import annotations

import dataclasses
import os
import signal
from pathlib import Path

import pytest
import torch

from anoscan.core.errors import ModelError, TrainingInterrupted
from anoscan.core.progress import Progress
from anoscan.core.runtime import Runtime
from anoscan.detector import Detector
from anoscan.networks.encoder_stage import EncoderStage
from anoscan.networks.gan_stage import GanStage
from anoscan.networks.loop import (
    Position,
    run,
)
from anoscan.training import learn
from anoscan.training.checkpoint import Checkpoint
from anoscan.training.folds import Folds
from tests.conftest import Digits
from tests.networks.test_stages import CPU


def test_what_mps_trains_is_measured_on_the_cpu(
    few: Digits, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained = Runtime(torch.device("mps"), "bfloat16", 3)
    assert trained.measuring() == Runtime(torch.device("cpu"), "float32", 3)
    assert CPU.measuring() is CPU
    asked: list[Runtime] = []
    there = dataclasses.replace(CPU, workers=7)
    monkeypatch.setattr(Runtime, "measuring", lambda self: asked.append(self) or there)
    path = tmp_path / "m.safetensors"
    detector = Detector.train(
        few.normal, path=path, images_shown=8, encoder_images_shown=8, calibration_folds=2,
        width=4, latent_dim=4, batch_size=4, workers=1, device="cpu",
    )  # fmt: skip
    assert detector.runtime is there
    assert Detector.load(path).runtime is there
    assert len(asked) >= 1 + 2 * 2, "folds are measured there as well"


@pytest.mark.parametrize(
    "stop_in",
    [
        "gan",
        *(pytest.param(stage, marks=pytest.mark.slow) for stage in ("rotation", "encoder")),
        "reconstruction",
    ],
)
def test_a_resumed_run_ends_with_the_same_bytes_as_an_uninterrupted_one(
    stop_in: str,
    few: Digits,
    quick: dict[str, int],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    whole = Detector.train(few.normal, name="run", path=tmp_path / "whole.safetensors", **quick)

    def stop_early(stage: GanStage | EncoderStage, **arguments: object) -> None:
        position = arguments["position"]
        assert isinstance(position, Position)
        if stage.name == stop_in:
            arguments["stopping"] = lambda: position.step >= 7
        run(stage, **arguments)  # type: ignore[arg-type]

    def train(resume: bool) -> Detector:
        path = tmp_path / "resumed.safetensors"
        return Detector.train(few.normal, name="run", path=path, resume=resume, **quick)

    with monkeypatch.context() as patch:
        patch.setattr("anoscan.networks.stages.run", stop_early)
        with pytest.raises(TrainingInterrupted):
            train(resume=False)
    resumed = train(resume=True)
    assert resumed.reference.sha256 == whole.reference.sha256
    assert resumed.report is not None
    assert resumed.report.images_shown == {
        "gan": 640, "rotation": 1920, "encoder": 320, "reconstruction": 427
    }  # fmt: skip


def test_a_checkpoint_that_was_cut_short_is_refused_and_the_way_out_is_said(tmp_path: Path) -> None:
    file = tmp_path / "run.safetensors"
    file.write_bytes(b"cut")
    with pytest.raises(ModelError, match="the checkpoint cannot be used") as raised:
        Checkpoint(file, {}, resume=True)
    assert raised.value.hint == "Train without --resume."


@pytest.mark.parametrize(
    "asked_in",
    [*(pytest.param(part, marks=pytest.mark.slow) for part in ("fit_all", "_maps")), "_trained"],
)
def test_an_interrupt_after_the_last_stage_loses_none_of_them(
    asked_in: str,
    few: Digits,
    quick: dict[str, int],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    owner = Folds if asked_in == "_trained" else learn
    settings = quick | ({"calibration_folds": 2} if owner is Folds else {})
    before = getattr(owner, asked_in)

    def interrupted(*given: object) -> object:
        os.kill(os.getpid(), signal.SIGINT)
        return before(*given)

    path = tmp_path / "model.safetensors"
    with monkeypatch.context() as patch:
        patch.setattr(owner, asked_in, interrupted)
        with pytest.raises(TrainingInterrupted, match="a checkpoint is kept"):
            Detector.train(few.normal, name="late", path=path, **settings)
    assert not path.exists()
    shown: list[Progress] = []
    resumed = Detector.train(
        few.normal, name="late", path=path, resume=True, on_progress=shown.append, **settings
    )
    assert not {"gan", "rotation", "encoder"} & {now.stage for now in shown}
    parts = [(now.images, now.total_images) for now in shown if now.stage == "calibration"]
    assert parts == [(done, 5) for done in range(6)]
    whole = Detector.train(few.normal, path=tmp_path / "whole.safetensors", **settings)
    assert resumed.reference.sha256 == whole.reference.sha256


def test_resuming_without_or_with_a_foreign_checkpoint_is_refused(
    few: Digits, quick: dict[str, int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(stage: GanStage, **arguments: object) -> None:
        run(stage, **{**arguments, "stopping": lambda: True})  # type: ignore[arg-type]

    path = tmp_path / "m.safetensors"
    told: list[Progress] = []
    with pytest.raises(ModelError, match="no checkpoint"):
        Detector.train(
            few.normal, name="r", path=path, resume=True, on_progress=told.append, **quick
        )
    assert not told  # no image is read, no folder named, for nothing
    with monkeypatch.context() as patch:
        patch.setattr("anoscan.networks.stages.run", stop)
        with pytest.raises(TrainingInterrupted):
            Detector.train(few.normal, name="r", path=path, **quick)
    with pytest.raises(ModelError, match=r"What differs: --seed \(was 0, is 9\)\."):
        Detector.train(few.normal, name="r", path=path, resume=True, seed=9, **quick)
    with pytest.raises(ModelError, match=r"What differs: images\."):
        Detector.train(few.queries, name="r", path=path, resume=True, **quick)


def test_same_seed_same_bytes_other_seed_other_bytes(
    few: Digits, quick: dict[str, int], tmp_path: Path
) -> None:
    def digest(name: str, seed: int, workers: int) -> str:
        path = tmp_path / f"{name}.safetensors"
        detector = Detector.train(few.normal, path=path, seed=seed, workers=workers, **quick)
        return detector.reference.sha256

    first = digest("a", 0, 1)
    assert digest("b", 0, 4) == first
    assert digest("c", 1, 1) != first


@pytest.mark.parametrize("reconstruction", [0, 8])
def test_reconstructions_that_fail_are_trained_again_twice_and_no_more(
    few: Digits, tmp_path: Path, reconstruction: int
) -> None:
    notes: list[Progress] = []
    detector = Detector.train(
        few.normal, path=tmp_path / "failed.safetensors", images_shown=64, encoder_images_shown=8,
        reconstruction_images_shown=reconstruction, width=4, on_progress=notes.append,
    )  # fmt: skip
    assert [now.stage for now in notes if now.note and "trained again" in now.note] == [
        "encoder-2", "encoder-3"
    ]  # fmt: skip
    assert detector.report is not None
    expected = {"encoder", "encoder-2", "encoder-3"}
    if reconstruction:
        expected |= {"reconstruction", "reconstruction-2", "reconstruction-3"}
    assert expected <= detector.report.seconds.keys()
    # The correction at the end draws what such networks do not.
    assert detector.model.reconstructions == ("ok" if reconstruction else "unusable")


def test_what_the_reconstruction_stage_mends_is_trained_once(few: Digits, tmp_path: Path) -> None:
    detector = Detector.train(
        few.normal, path=tmp_path / "mended.safetensors", images_shown=320, encoder_images_shown=8,
        reconstruction_images_shown=3200, width=16,
    )  # fmt: skip
    assert detector.report is not None
    assert "encoder-2" not in detector.report.seconds
    assert detector.model.reconstructions == "ok"


def test_an_encoder_that_learned_is_trained_once(trained: Detector) -> None:
    assert trained.report is not None
    assert "encoder-2" not in trained.report.seconds
    assert trained.model.reconstructions == "ok"
