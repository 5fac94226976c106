"""The campaign of faults in short, and that each part sees the faults that it looks for."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from anoscan.core.errors import InputError, ModelError
from anoscan.detector import Detector
from anoscan.images import pool
from anoscan.images.decode import Decoded
from anoscan.images.files import ImageFile
from benchmarks.faults import (
    campaign,
    images,
    interrupted,
    models,
    mutations,
    results,
    runs,
    samples,
    streams,
    together,
)
from benchmarks.faults.__main__ import PARTS, part_of
from benchmarks.faults.campaign import Outcome, Tally
from benchmarks.faults.runs import Ended, Material
from benchmarks.faults.sabotage import Sabotage, forbidding
from tests.benchmarks.broken_reader import end, read_badly

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="asks Linux about processes")


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder in which all parts share images and a model."""
    folder = tmp_path_factory.mktemp("prepared")
    runs.prepare(folder)
    return folder


@pytest.fixture(autouse=True)
def _own_temporary_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    models._own_folder.cache_clear()


@pytest.fixture(scope="module")
def material(prepared: Path) -> Material:
    return runs.prepare(prepared)


@pytest.fixture
def _small_limits(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for name, value in images.LIMITS.items():
        monkeypatch.setenv(name, value)
    yield
    pool.stop()


# A few cases, and single ones; all with another seed than a long run begins with.
FEW = [("images", 188), ("models", 60), ("checkpoints", 1), ("load", 300)]
SINGLE = [
    pytest.param("kill", 10, marks=pytest.mark.slow),  # a training, at an operation
    ("kill", 12),  # a scoring, at an operation
    ("disk", 10),  # a calibration, at a size
    ("disk", 14),  # a scoring, at an operation
    ("streams", list(streams.COMMANDS).index("list")),  # a full stdout
    ("streams", len(streams.COMMANDS)),  # a closed stdout
    pytest.param("concurrency", 0, marks=pytest.mark.slow),  # two trainings
    ("concurrency", 3),  # two writers
    ("network", 1),  # a scoring
]


@pytest.mark.parametrize(("name", "count"), FEW)
def test_a_few_cases_hold(
    name: str, count: int, prepared: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for variable, value in images.LIMITS.items():  # which `images` sets for its processes
        monkeypatch.setenv(variable, value)
    tally = campaign.run(name, part_of(name), prepared, count, seed=1)
    assert tally.failures == []
    assert tally.tried == count
    assert tally.facts["peak_mb"] > 20


@pytest.mark.parametrize(("name", "case"), SINGLE)
def test_a_single_case_holds(name: str, case: int, prepared: Path) -> None:
    tally = campaign.run(name, part_of(name), prepared, 1, seed=1, only=case)
    assert tally.failures == []
    assert tally.tried == 1


def test_a_release_is_tried_with_every_case() -> None:
    assert PARTS["streams"][2] == len(streams.REDIRECTED) * len(streams.COMMANDS)
    assert PARTS["network"][2] == len(streams.OFFLINE)


# --- images -------------------------------------------------------------------------------------

PLAIN = next(n for n, sample in enumerate(samples.every()) if sample.name == "PNG RGB 8")
TIFF = next(n for n, sample in enumerate(samples.every()) if sample.name == "TIFF <uint16")


@pytest.mark.usefixtures("_small_limits")
@pytest.mark.parametrize(("how", "number", "result"), [
    ("raises", PLAIN, "failed"), ("raises", TIFF, "failed"), ("two lines", TIFF, "failed"),
    ("complains", PLAIN, "failed"), ("NaN", PLAIN, "failed"), ("dies", TIFF, "isolated"),
])  # fmt: skip
def test_a_broken_reader_is_seen(
    how: str, number: int, result: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOW", how)
    monkeypatch.setattr(images, "mutated", lambda seed, number: (samples.every()[number], how))
    found = images.attempt(0, [number], read_badly)
    assert found is not None
    assert [outcome.result for outcome in found] == [result], found


def test_a_case_that_ends_the_program_itself_is_found_among_its_group(tmp_path: Path) -> None:
    tally = Tally("x")
    campaign.attempt_all(end, campaign.Plan(12, 0, 1, tmp_path, tmp_path), tally, together=4)
    assert [(failure.case, failure.detail) for failure in tally.failures] == [
        (5, "ends the process (exit code -9)")
    ]
    assert tally.line() == "x tried 12 held 11 isolated 0 failed 1 (0 s)"


@pytest.mark.usefixtures("_small_limits")
def test_all_samples_are_valid_and_damage_is_repeatable(monkeypatch: pytest.MonkeyPatch) -> None:
    made = samples.every()
    assert len({sample.name for sample in made}) == len(made)
    for number in range(0, 2 * len(made), 7):
        assert mutations.mutated(3, number) == mutations.mutated(3, number)
        assert mutations.mutated(3, number)[0].data != made[number % len(made)].data
    monkeypatch.setattr(images, "mutated", lambda seed, number: (made[number], ""))
    refused = []

    def read(image: ImageFile) -> Decoded:
        try:
            return images.read(image)
        except InputError as error:
            refused.append((made[images.number_of(image)].name, error.message))
            raise

    monkeypatch.setattr(images, "read_all", lambda read, files, workers: [
        (file, attempted(read, file)) for file in files
    ])  # fmt: skip
    images.attempt(0, range(len(made)), read)
    # All others decode. Some need packages that are no dependency, or leave a choice.
    allowed = "needs: pip|colours, or a stack"
    assert [found for found in refused if not any(word in found[1] for word in allowed.split("|"))
            and found[0] != "TIFF webp"] == []  # fmt: skip


def attempted(read: Any, file: ImageFile) -> object:
    try:
        return read(file)
    except InputError as error:
        return pool.Failed(error.message)


# --- models -------------------------------------------------------------------------------------


@pytest.mark.parametrize(("error", "result"), [(KeyError, "failed"), (ModelError, "held")])
def test_a_loader_that_raises_another_error_is_seen(
    error: type[Exception], result: str, material: Material
) -> None:
    def load(file: Path) -> Detector:
        raise error("no tensor")

    given = (material.file, material.query, load)
    assert {found.result for found in models.attempt_models(0, range(3), *given)} == {result}


def test_a_model_that_gives_no_score_is_seen(material: Material) -> None:
    image = SimpleNamespace(score=float("nan"), p_value=0.1, terms={}, verdict="normal")
    nothing: Any = SimpleNamespace(score=lambda paths: SimpleNamespace(images=[image]))
    given = (material.file, material.query, lambda file: nothing)
    (found,) = models.attempt_models(0, [0], *given)
    assert found.detail == "gives score nan, p-value 0.1, 'normal'"


# --- runs ---------------------------------------------------------------------------------------


def test_a_file_that_is_neither_old_nor_new_is_seen(material: Material, tmp_path: Path) -> None:
    job = interrupted.Job("x", material, lambda place: [], {"a": b"old"}, {"a": b"new", "b": b""})
    job.lay_out(tmp_path)
    assert job.problem(tmp_path, ended=False) == ""
    assert job.problem(tmp_path, ended=True) == "a is neither old nor new"
    (tmp_path / "a").write_bytes(b"ne")
    assert job.problem(tmp_path, ended=False) == "a is neither old nor new"
    (tmp_path / "a").write_bytes(b"new")
    assert job.problem(tmp_path, ended=True) == "b is absent"
    for name in ("b", ".anoscan-0.tmp"):
        (tmp_path / name).touch()
    assert job.problem(tmp_path, ended=False) == ""
    assert job.problem(tmp_path, ended=True) == "leaves .anoscan-0.tmp"


def test_kills_and_a_full_disk_come_at_the_operation_that_was_asked_for(
    material: Material, tmp_path: Path
) -> None:
    def export(name: str, **how: Any) -> tuple[Ended, list[str]]:
        folder = tmp_path / name
        folder.mkdir()
        sabotage = Sabotage(below=str(folder), log=str(tmp_path / f"{name}.log"), **how)
        given = ["models", "export", runs.NAME, folder / "copy.safetensors"]
        ended = runs.call(given, tmp_path / "said", material.home, sabotage=sabotage)
        return ended, (tmp_path / f"{name}.log").read_text().splitlines()

    ended, done = export("whole")
    assert ended.code == 0
    kinds = [line.split()[0] for line in done]
    assert {"open", "os.fsync", "os.rename"} <= set(kinds)
    ended, done = export("killed", kill_at=kinds.index("os.rename"))
    assert (ended.code, len(done)) == (-9, kinds.index("os.rename") + 1)
    assert not (tmp_path / "killed" / "copy.safetensors").exists()
    ended, _ = export("full", full_at=kinds.index("open"))
    assert ended.is_one_line()
    assert "No space left" in ended.err
    ended, _ = export("cut", most_bytes=5000, killed_by_size=True)
    assert ended.code == -signal.SIGXFSZ


@pytest.mark.parametrize(
    ("ended", "problem"),
    [
        (Ended(0, "score", ""), ""),
        (Ended(1, "", "Error: full.\n"), ""),
        (Ended(None, "", ""), "hangs for 120 seconds"),
        (Ended(-11, "", ""), "exit code -11: ''"),
        (Ended(70, "", "Traceback\nOSError: no\nA bug"), "prints a traceback: OSError: no"),
        (Ended(120, "", ""), "exit code 120: ''"),
    ],
)  # fmt: skip
def test_ends_that_no_run_may_have_are_seen(ended: Ended, problem: str) -> None:
    assert ended.problem == problem


def test_losses_of_streams_are_seen(material: Material, tmp_path: Path) -> None:
    def judged(name: str, how: str, ended: Ended) -> str:
        return streams.judged(name, how, ended, tmp_path, material)

    assert judged("score", "stdout full", Ended(0, "", "")) == (
        "exit code 0 though its output is lost"
    )
    assert judged("score", "stdout full", Ended(1, "", "")) == "says nothing of the full disk"
    assert "does not need" in judged("score", "stdin closed", Ended(1, "", ""))
    assert "there is no model" in judged("train", "all closed", Ended(1, "", ""))
    assert judged("missing", "stderr closed", Ended(0, "", "")) == "exit code 0"


def test_a_program_that_asks_for_the_network_is_seen(tmp_path: Path) -> None:
    log = tmp_path / "asked"
    site = forbidding(tmp_path / "site", log)
    places = os.pathsep.join(map(str, [site, runs.ROOT]))
    program = "import socket\nsocket.socketpair()\nsocket.create_connection(('127.0.0.1', 9))"
    done = subprocess.run(
        [sys.executable, "-c", program],
        env=os.environ | {"PYTHONPATH": places}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert "the network is forbidden" in done.stderr
    assert log.read_text().startswith("socket.")


def test_memory_that_grows_is_seen() -> None:
    for late, failed in ((500.0, 0), (600.0, 1)):
        tally = Tally("load")
        together.compare(tally, [(0.3, 500.0), (0.6, 900.0), (0.9, late)])
        assert len(tally.failures) == failed


# --- the table ----------------------------------------------------------------------------------


def test_the_document_has_the_table_of_the_kept_results() -> None:
    assert results.table(check=True) == 0


def test_a_row_shows_what_a_part_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    tally = replace(Tally("images"), held=1200, isolated=3, facts={"peak_mb": 1500}, seconds=61.2)
    tally.add(Outcome(7, "failed", "PNG", "hangs"))
    row = {"cls": "images", "seed": 0, "commit": "abc"} | tally.kept()
    monkeypatch.setattr(results.cells, "load", lambda pattern: [row])
    *_, line = results.text().splitlines()
    assert line == "| `images` | 1,204 | 1,200 | 3 | 1 | 61 | 1,500 | abc |"
