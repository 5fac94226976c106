"""Scoring on Ray gives what scoring here gives, even if a worker is lost half-way."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fsspec.implementations.memory import MemoryFileSystem

from anoscan import cli
from anoscan.core.config import TrainConfig
from anoscan.core.errors import AnoscanError, UsageError
from anoscan.core.progress import Progress
from anoscan.detector import Detector
from anoscan.images.files import find
from anoscan.scale.ray_scoring import RayScoring
from anoscan.scoring.choices import Inversion, ScoreRequest
from tests.conftest import Digits


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    """Two workers on this computer, with little memory."""
    ray = pytest.importorskip("ray")
    ray.init(
        address="local",
        num_cpus=2,
        object_store_memory=200 * 2**20,
        include_dashboard=False,
        log_to_driver=False,
    )
    yield
    ray.shutdown()


@pytest.fixture(scope="module")
def light(few: Digits, tmp_path_factory: pytest.TempPathFactory) -> Detector:
    """A detector that was trained for a second."""
    path = tmp_path_factory.mktemp("light") / "light.safetensors"
    quick = {"images_shown": 640, "encoder_images_shown": 320, "batch_size": 32, "width": 8}
    return Detector.train(few.normal, path=path, workers=1, config=TrainConfig(**quick))


@pytest.fixture
def queries(few: Digits, tmp_path: Path) -> Path:
    """Digits, and one file that is no image."""
    folder = tmp_path / "queries"
    shutil.copytree(few.queries, folder)
    (folder / "0000-damaged.png").write_bytes(b"no image")
    return folder


def run(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["anoscan", *map(str, arguments)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            cli.main()
    found = capsys.readouterr()
    return int(ended.value.code or 0), found.out, found.err


def test_images_in_the_memory_of_this_process_are_refused(
    monkeypatch: pytest.MonkeyPatch, few: Digits
) -> None:
    ranking: Any = None
    MemoryFileSystem().pipe("/ray/a.png", b"x")
    with pytest.raises(UsageError, match="memory of this process"):
        next(RayScoring()(ranking, find(["memory://ray"]), "model"))
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(AnoscanError, match="--engine ray needs Ray") as raised:
        next(RayScoring()(ranking, find([few.queries]), "model"))
    assert "anoscan[ray]" in str(raised.value.hint)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--engine", "spark"], "--engine must be local or ray"),
        (["--engine", "ray", "--jsonl"], "not with --jsonl and --csv"),
        (["--engine", "ray", "--maps", "maps"], "not with --maps"),
    ],
)
def test_what_ray_does_not_do_is_refused_by_name(
    capsys: pytest.CaptureFixture[str], arguments: list[str], says: str
) -> None:
    code, _, err = run(capsys, "score", "images", *arguments)
    assert code == 2
    assert says in " ".join(err.split())


@pytest.mark.slow
@pytest.mark.usefixtures("cluster")
@pytest.mark.filterwarnings("ignore")  # those of Ray
def test_the_documents_of_both_engines_are_equal(
    queries: Path, light: Detector, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    command = ["score", queries, "--model", light.reference.path, "--json", "--batch-size", "4"]
    here = run(capsys, *command)
    there = run(capsys, *command, "--engine", "ray", "-o", tmp_path / "out.csv")
    assert there[0] == here[0] == 3
    expected, found = json.loads(here[1]), json.loads(there[1])
    # One image fewer in a batch may change the last digit of its others.
    for image, other in zip(expected["images"], found["images"], strict=True):
        assert image.pop("score") == pytest.approx(other.pop("score"), rel=1e-5)
        assert image.pop("path") == other.pop("path")
        assert image["p_value"] == other["p_value"]
        assert image["q_value"] == other["q_value"]
        assert image["rank"] == other["rank"]
    assert expected["skipped"] == found["skipped"]
    assert expected["counts"] == found["counts"]
    from pyarrow import parquet

    rows = [
        row
        for file in sorted((tmp_path / "out-shards").iterdir())
        for row in parquet.read_table(file).to_pylist()
    ]
    assert len(rows) == len(expected["images"]) + 1
    assert {row["verdict"] for row in rows} == {"normal", "anomalous", "skipped"}
    assert (tmp_path / "out.csv").is_file()


@pytest.mark.slow
@pytest.mark.usefixtures("cluster")
@pytest.mark.filterwarnings("ignore")
def test_a_worker_that_is_killed_half_way_costs_only_time(few: Digits, light: Detector) -> None:
    files = find([few.queries])
    request = ScoreRequest.of(score="paper", mapping=Inversion("search", steps=20), batch_size=2)
    here = light.score_files(files, request)
    killed: list[tuple[int, int]] = []

    def kill_once(progress: Progress) -> None:
        if not killed and 0 < progress.images < len(files):
            victim = workers()[0]
            os.kill(victim, signal.SIGKILL)
            killed.append((victim, progress.images))

    there = light.score_files(files, request, on_progress=kill_once, elsewhere=RayScoring())
    assert killed
    assert killed[0][0] not in workers()
    assert there == here


@pytest.mark.slow
@pytest.mark.usefixtures("cluster")
@pytest.mark.filterwarnings("ignore")
def test_what_an_actor_raises_reaches_the_user(
    few: Digits, light: Detector, tmp_path: Path
) -> None:
    bad = tmp_path / "bad.safetensors"
    bad.write_bytes(b"no model")
    detector = Detector(light.model, light.runtime)
    detector.reference = dataclasses.replace(light.reference, path=str(bad))
    with pytest.raises(AnoscanError, match=r"Ray fails|is not an anoscan model"):
        detector.score_files(find([few.queries]), elsewhere=RayScoring())


def workers() -> list[int]:
    """Ids of the processes of Ray's actors that this process, or one of its children, started."""
    found = []
    for place in Path("/proc").iterdir():
        if place.name.isdecimal():
            try:
                title = (place / "cmdline").read_bytes()
            except OSError:
                continue
            if title.startswith(b"ray::MapWorker") and os.getpid() in ancestors(int(place.name)):
                found.append(int(place.name))
    return found


def ancestors(process: int) -> list[int]:
    found = []
    while process > 1:
        status = Path(f"/proc/{process}/stat").read_text(encoding="ascii", errors="replace")
        process = int(status.rpartition(")")[2].split()[1])
        found.append(process)
    return found
