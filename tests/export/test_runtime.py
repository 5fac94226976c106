"""`score --runtime onnx` gives the documents of torch, and refuses what it cannot compute."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from anoscan.cli.app import app
from anoscan.core.errors import UsageError
from anoscan.detector import Detector
from anoscan.export import runtime
from anoscan.model import store
from anoscan.scoring.choices import ScoreRequest
from tests.conftest import Digits

pytest.importorskip("onnx")
pytest.importorskip("onnxscript")
pytest.importorskip("onnxruntime")


@pytest.mark.slow
def test_documents_are_those_of_torch(model_file: Path, digits: Digits) -> None:
    ours = Detector.load(model_file, device="cpu").score(digits.queries)
    (store.home() / "onnx").mkdir(parents=True)
    detector = Detector.load(model_file, runtime="onnx")
    (kept,) = (store.home() / "onnx").iterdir()
    made = kept.stat().st_mtime_ns, kept.stat().st_size
    theirs = detector.score(digits.queries)
    found = {image.path: image for image in theirs.images}
    assert theirs.threshold == ours.threshold
    for image in ours.images:
        other = found[image.path]
        assert other.verdict == image.verdict
        assert other.score == pytest.approx(image.score, abs=1e-4)
        assert other.p_value == image.p_value
        assert other.terms == pytest.approx(image.terms, abs=1e-3)
        assert len(other.regions) == len(image.regions)
    kept.write_bytes(b"damaged")
    again = Detector.load(model_file, runtime="onnx").score(digits.queries, top=3)
    assert [i.path for i in again.images] == [i.path for i in theirs.images[:3]]
    assert kept.stat().st_size == made[1]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--runtime", "tensorflow"], "--runtime must be one of torch, onnx"),
        (["--runtime", "onnx", "--score", "paper"], "cannot compute --score paper"),
        (["--runtime", "onnx", "--mapping", "refine"], "cannot compute --mapping refine"),
        (["--runtime", "onnx", "--device", "cuda"], "not with --device cuda"),
    ],
)
def test_what_it_cannot_compute_is_named(options: list[str], said: str, tmp_path: Path) -> None:
    refused = CliRunner().invoke(app, ["score", str(tmp_path), *options])
    assert isinstance(refused.exception, UsageError)
    assert said in refused.exception.message


def test_torch_takes_every_request() -> None:
    runtime.check_runtime("torch", "cuda")
    runtime.check_request("torch", ScoreRequest(score="paper"))


def test_old_graphs_are_forgotten(tmp_path: Path) -> None:
    for number in range(runtime._KEPT + 2):
        (tmp_path / f"{number}.onnx").touch()
    runtime._forget(tmp_path)
    assert len(list(tmp_path.iterdir())) == runtime._KEPT
