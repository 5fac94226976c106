from __future__ import annotations

import signal
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_digits

from anoscan.detector import Detector

NORMAL_DIGIT = 8


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="session", autouse=True)
def _interruptible() -> None:
    """Commands that tests start can be interrupted, also where a shell runs tests behind itself.

    Such a shell lets all its processes ignore SIGINT.
    """
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session", autouse=True)
def _own_home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Fixtures of modules train in a store that no other process uses."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ANOSCAN_HOME", str(tmp_path_factory.mktemp("home")))
        yield


@pytest.fixture(autouse=True)
def _own_store(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """No test sees the models of the user who runs it."""
    monkeypatch.setenv("ANOSCAN_HOME", str(tmp_path_factory.mktemp("home")))


@dataclass(frozen=True)
class Digits:
    """Real scanned digits in folders: all but one digit are normal."""

    normal: Path
    queries: Path
    labels: Path
    odd: int


def write_digits(folder: Path, *, odd: int, normals: int, queries: int) -> Digits:
    """Write scans of scikit-learn's digits; `queries` normals and as many of the odd digit."""
    digits = load_digits()
    images = np.round(digits.images * (255 / 16)).astype(np.uint8)
    order = np.random.default_rng(0).permutation(len(images))
    normal = [int(row) for row in order if digits.target[row] != odd]
    strange = [int(row) for row in order if digits.target[row] == odd][:queries]
    found = Digits(folder / "normal", folder / "queries", folder / "labels.csv", odd)
    found.normal.mkdir(parents=True)
    found.queries.mkdir()
    for row in normal[:normals]:
        Image.fromarray(images[row]).save(found.normal / f"{row:04d}.png")
    lines = ["path,label"]
    for row in [*normal[normals : normals + queries], *strange]:
        Image.fromarray(images[row]).save(found.queries / f"{row:04d}.png")
        lines.append(f"queries/{row:04d}.png,{int(digits.target[row] == odd)}")
    found.labels.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return found


@pytest.fixture(scope="session")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Digits:
    return write_digits(tmp_path_factory.mktemp("digits"), odd=0, normals=1200, queries=150)


@pytest.fixture(scope="session")
def few(tmp_path_factory: pytest.TempPathFactory) -> Digits:
    """A small folder, for tests that do not ask how good the detector is."""
    return write_digits(tmp_path_factory.mktemp("few"), odd=0, normals=120, queries=20)


@pytest.fixture(scope="session")
def trained(digits: Digits, tmp_path_factory: pytest.TempPathFactory) -> Detector:
    """A detector trained for a few seconds on real digits."""
    home = tmp_path_factory.mktemp("trained")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ANOSCAN_HOME", str(home))
        return Detector.train(
            digits.normal, path=home / "trained.safetensors", images_shown=8_000, workers=2
        )


@pytest.fixture(scope="session")
def model_file(trained: Detector) -> Path:
    return Path(trained.reference.path)


@pytest.fixture
def quick() -> dict[str, int]:
    """Settings for a model in about a second."""
    return {"images_shown": 640, "encoder_images_shown": 320, "batch_size": 32, "width": 8}
