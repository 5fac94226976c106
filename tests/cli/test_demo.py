"""The demo: short here, at full length by hand."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from anoscan import cli
from anoscan.cli.commands import demo
from anoscan.core.errors import TrainingInterrupted
from anoscan.detector import Detector
from anoscan.model import store
from tests.documents import check_documents


def run(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, *arguments: str
) -> tuple[int, str, str]:
    monkeypatch.setattr(sys, "argv", ["anoscan", "demo", *arguments])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    captured = capsys.readouterr()
    check_documents(captured.out)
    return int(ended.value.code or 0), captured.out, captured.err


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo, "IMAGES_SHOWN", 640)


@pytest.mark.usefixtures("short")
def test_the_demo_does_the_whole_job_and_leaves_its_pictures(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "a demo"
    code, out, _ = run(capsys, monkeypatch, "--output", str(folder), "--json")
    assert code == 0
    document: dict[str, Any] = json.loads(out)
    assert list(document) == ["schema", "train", "score", "eval", "output"]
    assert document["schema"] == "anoscan.demo/1"
    for part in ("train", "score", "eval"):
        assert document[part]["schema"] == f"anoscan.{part}/1"
    assert document["output"] == folder.as_posix()
    counts = document["eval"]["images"]
    assert (counts["normal"], counts["anomalous"]) == (323, 178)
    assert counts["unlabelled"] == counts["missing"] == 0
    assert len(document["score"]["images"]) == 501
    assert all(Path(image["residual"]).is_file() for image in document["score"]["images"])
    assert (folder / "model.safetensors").is_file()
    with Image.open(folder / "sheet.png") as sheet:
        assert min(sheet.size) > 1


@pytest.mark.slow
@pytest.mark.usefixtures("short")
def test_the_demo_runs_again_in_its_own_folder_and_prints_what_to_do_next(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "queries").mkdir()  # as an interrupted demo leaves it
    code, out, err = run(capsys, monkeypatch, "--output", str(tmp_path))
    assert code == 0
    assert f"anoscan score {tmp_path}/queries --model {tmp_path}/model.safetensors" in out
    assert len(err.splitlines()) < 15


@pytest.mark.parametrize("kind", ["folder", "file"])
def test_the_demo_leaves_what_is_not_its_own(
    tmp_path: Path,
    kind: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (tmp_path / "mine.txt").touch()
    target = tmp_path if kind == "folder" else tmp_path / "mine.txt"
    code, out, err = run(capsys, monkeypatch, "--output", str(target), "--json")
    assert code == 1
    assert out == ""
    assert "--output" in err
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_an_interrupted_demo_leaves_no_checkpoint_that_nobody_could_resume(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint = store.checkpoint_path(demo.NAME)

    def interrupted(*arguments: object, **options: object) -> None:
        checkpoint.parent.mkdir(parents=True)
        checkpoint.touch()
        raise TrainingInterrupted("training was stopped; a checkpoint is kept.")

    monkeypatch.setattr(Detector, "train", interrupted)
    code, out, err = run(capsys, monkeypatch, "--output", str(tmp_path / "demo"), "--json")
    assert code == 130
    assert out == ""
    assert "anoscan demo" in err
    assert not checkpoint.exists()


@pytest.mark.slow
def test_the_demo_at_full_length_finds_the_digit_it_never_saw(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    code, out, _ = run(capsys, monkeypatch, "--output", str(tmp_path / "demo"), "--json")
    assert code == 0
    report = json.loads(out)["eval"]
    assert report["auroc"] >= 0.90
    assert report["auroc"] > report["baselines"]["mean_image"]["auroc"]
    assert report["at_threshold"]["recall"] > 0.5
    assert report["at_threshold"]["false_alarm_rate"] < 0.1
