"""``anoscan watch``: images are scored as they arrive, each once, whatever ends the program."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from anoscan.core.results import IMAGE_SCHEMA
from tests.cli.test_cli import Run, finished, run
from tests.conftest import Digits

__all__ = ["run"]  # a fixture

pytestmark = pytest.mark.skipif(os.name != "posix", reason="Windows has other signals")


class Watched:
    """A folder that watches write their results about to a file."""

    def __init__(self, root: Path, model: Path) -> None:
        self.folder, self.results = root / "incoming", root / "results.jsonl"
        self.state, self.notes, self.model = root / "state.jsonl", root / "notes.txt", model
        self.folder.mkdir()
        self.running: list[subprocess.Popen[bytes]] = []

    def start(self, *options: object) -> subprocess.Popen[bytes]:
        command = ["watch", self.folder, "--model", self.model, "--state", self.state]
        command += ["--settle", 0.3, "--workers", 1, *options]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        with self.results.open("ab") as out, self.notes.open("ab") as err:
            process = subprocess.Popen(
                [sys.executable, "-m", "anoscan", *map(str, command)],
                stdout=out,
                stderr=err,
                env=environment,
            )
        self.running.append(process)
        return process

    def lines(self) -> list[dict[str, Any]]:
        text = self.results.read_text() if self.results.exists() else ""
        return [json.loads(line) for line in text.splitlines()]

    def has(self, number: int) -> bool:
        return len(self.lines()) >= number

    def counts(self) -> Counter[str]:
        return Counter(Path(line["path"]).name for line in self.lines())

    def until(self, true: Callable[[], bool], seconds: float = 90) -> None:
        end = time.monotonic() + seconds
        while not true():
            assert time.monotonic() < end, self.notes.read_text()
            for process in self.running:
                assert process.poll() in (None, -9, 130), self.notes.read_text()
            time.sleep(0.05)

    def end(self, process: subprocess.Popen[bytes], number: int = signal.SIGINT) -> int:
        process.send_signal(number)
        return process.wait(60)


@pytest.fixture
def watched(tmp_path: Path, model_file: Path) -> Iterator[Watched]:
    found = Watched(tmp_path, model_file)
    yield found
    for process in found.running:
        if process.poll() is None:
            process.kill()
            process.wait()


def images(digits: Digits, n: int) -> list[Path]:
    return sorted(digits.queries.glob("*.png"))[:n]


def odd_images(digits: Digits) -> list[Path]:
    rows = [row.split(",") for row in digits.labels.read_text().split()[1:]]
    return [digits.labels.parent / path for path, label in rows if label == "1"]


def test_images_are_scored_as_they_arrive_and_a_restart_repeats_none(
    watched: Watched, digits: Digits
) -> None:
    first, second, third, slow, late = images(digits, 5)
    shutil.copy(first, watched.folder)
    process = watched.start()
    watched.until(lambda: len(watched.lines()) == 1)
    (watched.folder / "deep").mkdir()
    shutil.copy(second, watched.folder / "deep")
    shutil.copy(third, watched.folder / "hidden.part")
    (watched.folder / "hidden.part").rename(watched.folder / third.name)
    content = slow.read_bytes()
    with (watched.folder / slow.name).open("wb") as target:
        for place in range(0, len(content), len(content) // 6 + 1):
            target.write(content[place : place + len(content) // 6 + 1])
            target.flush()
            time.sleep(0.15)
    watched.until(lambda: len(watched.lines()) == 4)
    assert watched.end(process) == 130
    assert watched.notes.read_text().splitlines()[-1] == "interrupted"
    shutil.copy(late, watched.folder)
    process = watched.start()
    watched.until(lambda: len(watched.lines()) == 5)
    assert watched.end(process, signal.SIGTERM) == 130
    by_score = finished("score", watched.folder, "--model", watched.model, "--jsonl")
    expected = {line["path"]: line for line in map(json.loads, by_score.out.splitlines())}
    assert len(expected) == 5
    for line in watched.lines():
        same = expected.pop(line["path"])
        assert set(line) == set(same)
        assert line["score"] == pytest.approx(same["score"], rel=1e-5)  # of another batch
        for field in ("verdict", "rank", "p_value", "mismatch"):
            assert line[field] == same[field]
    assert not expected
    assert {line["schema"] for line in watched.lines()} == {IMAGE_SCHEMA}
    assert "could not be read" not in watched.notes.read_text()


@pytest.mark.parametrize(
    "number", [signal.SIGKILL, pytest.param(signal.SIGTERM, marks=pytest.mark.slow)]
)
def test_nothing_is_scored_twice_or_lost_whenever_a_watch_is_ended(
    watched: Watched, digits: Digits, number: int
) -> None:
    chance = random.Random(number)
    some = images(digits, 60)
    for file in some:
        shutil.copy2(file, watched.folder)
    for _ in range(3):
        process = watched.start("--batch-size", 1)
        more = min(len(watched.lines()) + 1, len(some))
        watched.until(partial(watched.has, more))
        time.sleep(chance.uniform(0, 0.2))
        watched.end(process, number)
        assert not watched.results.read_bytes() or watched.results.read_bytes().endswith(b"\n")
    process = watched.start()
    watched.until(lambda: len(watched.lines()) >= len(some))
    time.sleep(1)
    watched.end(process)
    assert watched.counts() == Counter(file.name for file in some)


def test_the_command_runs_for_each_anomaly_and_its_failure_stops_nothing(
    watched: Watched, digits: Digits, tmp_path: Path
) -> None:
    alarms = tmp_path / "alarms.jsonl"
    script = tmp_path / "alarm.py"
    script.write_text(
        f"import sys; open({str(alarms)!r}, 'a').write(sys.stdin.read()); raise SystemExit(7)"
    )
    for file in (*images(digits, 20), *odd_images(digits)[:10]):
        shutil.copy(file, watched.folder)
    number = len(list(watched.folder.iterdir()))
    process = watched.start("--exec", f"{sys.executable} {script}")
    watched.until(lambda: len(watched.lines()) == number)
    anomalous = [line for line in watched.lines() if line["verdict"] == "anomalous"]
    assert anomalous
    watched.until(lambda: len(alarms.read_text().splitlines()) == len(anomalous))
    assert [json.loads(line) for line in alarms.read_text().splitlines()] == anomalous
    watched.until(lambda: watched.notes.read_text().count("exit code 7") == len(anomalous))
    watched.end(process)


def test_an_alarm_that_a_kill_cut_off_is_given_after_the_restart(
    watched: Watched, digits: Digits, tmp_path: Path
) -> None:
    begun, done = tmp_path / "begun", tmp_path / "done.jsonl"
    for file in odd_images(digits)[:8]:
        shutil.copy(file, watched.folder)
    process = watched.start("--exec", f"sh -c 'touch {begun}; sleep 30'")
    watched.until(begun.exists)
    watched.end(process, signal.SIGKILL)
    process = watched.start("--exec", f"tee -a {done}")
    watched.until(lambda: len(watched.lines()) == 8)
    alarmed = {line["path"] for line in watched.lines() if line["verdict"] == "anomalous"}
    watched.until(lambda: len(done.read_text().splitlines()) == len(alarmed))
    watched.end(process)
    assert {json.loads(line)["path"] for line in done.read_text().splitlines()} == alarmed
    assert set(watched.counts().values()) == {1}


def test_what_is_there_already_may_be_left_and_what_comes_meanwhile_is_not(
    watched: Watched, digits: Digits
) -> None:
    there, comes, meanwhile = images(digits, 3)
    shutil.copy(there, watched.folder)
    process = watched.start("--no-existing")
    watched.until(lambda: "watching" in watched.notes.read_text())
    shutil.copy(comes, watched.folder)
    watched.until(lambda: len(watched.lines()) == 1)
    watched.end(process)
    shutil.copy(meanwhile, watched.folder)
    process = watched.start("--no-existing")
    watched.until(lambda: len(watched.lines()) == 2)
    watched.end(process)
    assert set(watched.counts()) == {comes.name, meanwhile.name}
    assert "1 images that are there already are not scored" in watched.notes.read_text()


def test_an_unreadable_file_is_said_once_and_scored_when_it_is_mended(
    watched: Watched, digits: Digits
) -> None:
    good, other = images(digits, 2)
    bad = watched.folder / "bad.png"
    bad.write_bytes(good.read_bytes()[:60])
    process = watched.start()
    watched.until(lambda: "bad.png could not be read" in watched.notes.read_text())
    watched.end(process)
    process = watched.start()
    shutil.copy(other, watched.folder)
    watched.until(lambda: len(watched.lines()) == 1)
    bad.write_bytes(good.read_bytes())
    watched.until(lambda: len(watched.lines()) == 2)
    watched.end(process)
    assert watched.notes.read_text().count("could not be read") == 1
    assert watched.counts() == Counter(["bad.png", other.name])


@pytest.mark.slow
def test_pages_of_a_file_are_scored_each_once(watched: Watched, digits: Digits) -> None:
    from PIL import Image

    pages = [Image.open(file) for file in images(digits, 3)]
    pages[0].save(watched.folder / "scan.tif", save_all=True, append_images=pages[1:])
    for expected in (3, 3):
        process = watched.start()
        watched.until(lambda: watched.notes.read_text().count("watching") == len(watched.running))
        time.sleep(1.5)
        watched.end(process)
        assert len(watched.lines()) == expected
    assert set(watched.counts()) == {"1", "2", "3"}


def test_a_folder_that_goes_away_for_a_while_is_waited_for(
    watched: Watched, digits: Digits, tmp_path: Path
) -> None:
    first, second = images(digits, 2)
    shutil.copy(first, watched.folder)
    process = watched.start()
    watched.until(lambda: len(watched.lines()) == 1)
    watched.folder.rename(tmp_path / "away")
    time.sleep(1)
    assert process.poll() is None
    (tmp_path / "away").rename(watched.folder)
    shutil.copy(second, watched.folder)
    watched.until(lambda: len(watched.lines()) == 2)
    watched.end(process)


def test_two_watches_of_one_folder_and_model_are_refused(watched: Watched, digits: Digits) -> None:
    process = watched.start()
    watched.until(lambda: "watching" in watched.notes.read_text())
    second = finished("watch", watched.folder, "--model", watched.model, "--state", watched.state)
    assert second.code == 1
    assert "another watch uses" in second.err.splitlines()[-1]
    watched.end(process)


def test_what_a_watch_needs_is_said(
    run: Run, watched: Watched, model_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    missing = run("watch", watched.folder / "none", "--model", model_file)
    assert missing.code == 1
    assert "is no folder that can be watched" in missing.err
    assert run("watch", watched.folder, "--exec", "'", "--model", model_file).code == 2
    assert run("watch", watched.folder, "--settle", "0").code == 2
    monkeypatch.setitem(sys.modules, "watchfiles", None)
    without = run("watch", watched.folder, "--model", model_file)
    assert without.code == 1
    assert "pip install 'anoscan[watch]'" in without.err
