"""What users are told of a model whose training failed checks: on stderr, in JSON, in Python."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import anoscan as package
from anoscan import AnoscanWarning, cli
from anoscan.detector import Detector
from anoscan.model import file as modelfile
from tests.conftest import Digits

SCORES = "The training of poor failed the check of images: its scores and verdicts may mean little"
PICTURES = "The reconstructions of poor are unusable"
Run = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def poor(model_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A good model as if its training had failed two checks, and warned of a third."""
    tensors, metadata, _ = modelfile.load(model_file)
    verdicts = {"images": "fail", "reconstruction": "fail", "sizes": "warn"}
    for check in metadata["health"]["checks"]:
        check["verdict"] = verdicts.get(check["name"], "ok")
    path = tmp_path_factory.mktemp("poor") / "poor.safetensors"
    modelfile.save(path, tensors, metadata)
    return path


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Run:
    def call(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["anoscan", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        out, err = capsys.readouterr()
        return int(ended.value.code or 0), out, err

    return call


def commands(few: Digits, model: Path, folder: Path) -> dict[str, list[object]]:
    """Return a short run of every command that loads a model."""
    return {
        "score": ["score", few.queries, "--model", model],
        "json": ["score", few.queries, "--model", model, "--json"],
        "jsonl": ["score", few.queries, "--model", model, "--jsonl"],
        "eval": ["eval", "--labels", few.labels, "--model", model],
        "drift": ["drift", model, few.queries],
        "sample": ["sample", model, "--output", folder / "samples", "--n", 4],
        "suspects": ["suspects", few.normal, "--model", model],
        "calibrate": ["calibrate", model, "--false-alarm-rate", 0.05, "--name", "anew"],
    }


@pytest.mark.parametrize(
    "name", ["score", "json", "jsonl", "eval", "drift", "sample", "suspects", "calibrate"]
)
def test_failed_checks_are_named_once_by_every_command_and_never_when_quiet(
    name: str, run: Run, poor: Path, few: Digits, tmp_path: Path
) -> None:
    command = commands(few, poor, tmp_path)[name]
    code, _, err = run(*command)
    assert code in (0, 5), err
    assert err.count(f"Warning: {SCORES}") == 1
    assert err.count(f"Warning: {PICTURES}") == 1
    assert "sizes" not in err
    again = [*command, "--force"] if name == "calibrate" else command
    code, _, err = run(*again, "--quiet")
    assert code in (0, 5), err
    assert err == ""


def test_quiet_leaves_what_went_wrong(run: Run, poor: Path, few: Digits, tmp_path: Path) -> None:
    (tmp_path / "broken.png").write_bytes(b"\x89PNG")
    code, _, err = run("score", few.queries, tmp_path, "--model", poor, "-q")
    assert code == 3
    assert "broken.png" in err
    assert "poor" not in err
    code, _, err = run("score", tmp_path / "none", "--model", poor, "-q")
    assert code == 1
    assert err.startswith("Error: ")


def test_a_batch_that_is_nearly_all_anomalous_is_doubted_unless_quiet(
    run: Run, model_file: Path, few: Digits
) -> None:
    odd = ["score", few.queries, "--model", model_file, "--false-alarm-rate", 0.99]
    assert "images are called anomalous" in run(*odd)[2]
    assert run(*odd, "-q")[2] == ""


def test_stderr_of_the_program_has_no_warning_of_python(poor: Path, few: Digits) -> None:
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "PYTHONWARNINGS": "always",
        "PYTHONPATH": str(Path(package.__file__).parents[1]),
    }
    query = next(iter(sorted(few.queries.iterdir())))
    ended = subprocess.run(
        [sys.executable, "-m", "anoscan", "score", query, "--model", poor],
        capture_output=True,
        text=True,
        env=environment,
        check=True,
    )
    assert "AnoscanWarning" not in ended.stderr
    assert [line[:9] for line in ended.stderr.splitlines() if "poor" in line] == ["Warning: "] * 2


def test_json_has_the_health_of_the_model(
    run: Run, poor: Path, model_file: Path, few: Digits
) -> None:
    def health(model: Path) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(
            run("score", few.queries, "--model", model, "--json", "-q")[1]
        )["health"]
        return found

    assert health(model_file) == {"verdict": "ok", "reconstructions": "ok", "messages": []}
    found = health(poor)
    assert (found["verdict"], found["reconstructions"]) == ("fail", "unusable")
    assert [message.partition(":")[0] for message in found["messages"]] == [
        SCORES.partition(":")[0],
        PICTURES,
        "sizes",
    ]


def test_python_warns_of_a_model_that_failed_checks(poor: Path, few: Digits) -> None:
    with pytest.warns(AnoscanWarning) as seen:
        detector = Detector.load(poor)
    assert [str(warning.message)[:20] for warning in seen] == [SCORES[:20], PICTURES[:20]]
    assert {warning.filename for warning in seen} == {__file__}
    assert issubclass(AnoscanWarning, UserWarning)
    report = detector.score(few.queries)
    assert report.health.reconstructions == detector.model.reconstructions == "unusable"


def test_python_does_not_warn_of_a_good_model(model_file: Path, few: Digits) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        detector = Detector.load(model_file)
    report = detector.score(few.queries)
    assert report.health.reconstructions == detector.model.reconstructions == "ok"
