"""Signals that end the program, and what a process that is killed leaves behind."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from anoscan.cli.signals import end_cleanly, whole_line
from anoscan.model import store
from anoscan.model.claims import claim
from anoscan.model.training_record import Record
from anoscan.networks.loop import stop_on_interrupt
from tests.cli.test_cli import SMALL, Run, anoscan, run
from tests.conftest import Digits

__all__ = ["run"]  # a fixture

pytestmark = pytest.mark.skipif(os.name != "posix", reason="Windows has other signals")

LINE = {"stage": "gan", "images": 1, "losses": {}, "pictures": []}


@pytest.fixture
def hangups() -> Iterator[None]:
    """SIGHUP ends the process, however the tests were started."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)


@pytest.mark.usefixtures("hangups")
@pytest.mark.parametrize(
    "number", [signal.SIGTERM, pytest.param(signal.SIGHUP, marks=pytest.mark.slow)]
)
def test_a_training_that_is_told_to_end_keeps_a_checkpoint(
    number: signal.Signals, few: Digits
) -> None:
    process = anoscan("train", few.normal, "--images-shown", 10**7, "--name", "a")
    assert process.stderr is not None
    for line in process.stderr:
        if "reading images" in line:
            break
    process.send_signal(number)
    process.send_signal(number)  # as some terminals and systems do
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert out == ""
    assert "--resume" in err.splitlines()[-1]
    assert store.checkpoint_path("a").is_file()


@pytest.mark.usefixtures("hangups")
def test_a_second_hangup_does_not_disturb_the_checkpoint() -> None:
    with stop_on_interrupt() as stopping:
        for number in (signal.SIGHUP, signal.SIGHUP, signal.SIGTERM):
            os.kill(os.getpid(), number)
        assert stopping()
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
    assert signal.getsignal(signal.SIGHUP) is signal.SIG_DFL


@pytest.mark.usefixtures("hangups")
def test_a_hangup_that_is_ignored_stays_ignored() -> None:
    signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as nohup does
    with end_cleanly(), stop_on_interrupt() as stopping:
        os.kill(os.getpid(), signal.SIGHUP)
        assert not stopping()


@pytest.mark.usefixtures("hangups")
def test_a_line_is_whole_before_a_signal_ends_the_program() -> None:
    written = []

    def line() -> None:
        with whole_line():
            os.kill(os.getpid(), signal.SIGTERM)
            written.append("whole")

    with end_cleanly(), pytest.raises(KeyboardInterrupt):
        line()
    assert written == ["whole"]
    with end_cleanly(), pytest.raises(KeyboardInterrupt):
        os.kill(os.getpid(), signal.SIGHUP)
    assert signal.getsignal(signal.SIGHUP) is signal.SIG_DFL


@pytest.mark.usefixtures("hangups")
@pytest.mark.parametrize(
    "number",
    [signal.SIGTERM, pytest.param(signal.SIGHUP, marks=pytest.mark.slow), signal.SIGINT],
)
def test_scoring_that_is_told_to_end_leaves_whole_lines(
    number: signal.Signals, digits: Digits, model_file: Path
) -> None:
    process = anoscan(
        "score", digits.queries, "--model", model_file, "--jsonl", "--batch-size", 1, "-q"
    )
    assert process.stdout is not None
    first = process.stdout.readline()
    process.send_signal(number)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert err == "interrupted\n"
    lines = (first + out).splitlines(keepends=True)
    assert 0 < len(lines) < 300
    for line in lines:
        assert line.endswith("\n")
        assert json.loads(line)["rank"] is None


KILLED = """
import os, signal, sys
from anoscan.core.files import replacing
from anoscan.model import store
from anoscan.model.claims import claim
from anoscan.model.training_record import Record
with claim("a"):
    record = Record(store.checkpoint_path("a"))
    record.append({"stage": "gan", "images": 1, "losses": {}, "pictures": []})
    with replacing(record.picture("samples", "gan", 1)), replacing(store.path_for("a")):
        with replacing(store.checkpoint_path("a")):
            os.kill(os.getpid(), signal.SIGKILL)
"""


def killed() -> list[Path]:
    """Kill a training while it writes; return what it left unfinished."""
    done = subprocess.run([sys.executable, "-c", KILLED], check=False)
    assert done.returncode == -signal.SIGKILL
    return list(store.home().rglob(".anoscan-*.tmp"))


def test_the_next_training_removes_what_a_killed_one_left(run: Run, few: Digits) -> None:
    assert len(killed()) == 3
    assert run("train", few.normal, *SMALL, "--name", "b").code == 0
    left = {path.name for path in store.home().rglob("*") if path.is_file()}
    assert {name for name in left if name.startswith("a")} <= {"a.lock"}
    assert {name for name in left if name.startswith(".")} == set()
    assert not Record(store.checkpoint_path("a")).folder.exists()


def test_a_killed_training_that_can_be_resumed_keeps_its_record(run: Run, few: Digits) -> None:
    killed()
    store.checkpoint_path("a").write_bytes(b"a checkpoint")
    with claim("b"):
        pass
    assert Record(store.checkpoint_path("a")).lines() == [LINE]
    assert not list((store.home() / "locks").glob("*.running"))


def test_a_record_of_a_running_training_is_left_alone() -> None:
    record = Record(store.checkpoint_path("a"))
    with claim("a"):
        record.append(LINE)
        with claim("b"):
            pass
        assert record.lines() == [LINE]
    with claim("b"):
        pass
    assert record.lines() == [LINE]  # it ended by itself, as a diverged training does


def test_the_list_of_models_shows_nothing_unfinished(run: Run) -> None:
    assert len(killed()) == 3
    assert run("models", "list", "--json").json["models"] == []
    assert not list(store.models_folder().iterdir())


REWINDING = """
import os, signal, sys
from pathlib import Path
from anoscan.model.training_record import Record
calls = [0]
def count(event, arguments):
    if event in ("os.remove", "os.rename", "open") and ".training" in str(arguments[0]):
        calls[0] += 1
        if calls[0] == int(sys.argv[2]):
            os.kill(os.getpid(), signal.SIGKILL)
sys.addaudithook(count)
Record(Path(sys.argv[1])).rewind("gan", 20)
"""


def test_a_record_is_whole_wherever_its_rewinding_is_killed(tmp_path: Path) -> None:
    model = tmp_path / "m.safetensors"
    record = Record(model)
    lines = [LINE | {"images": images} for images in (10, 20, 30)]
    ended = []
    for place in range(1, 20):
        record.clear()
        for line in lines:
            record.append(line)
        done = subprocess.run([sys.executable, "-c", REWINDING, model, str(place)], check=False)
        assert record.lines() in (lines, lines[:2])
        ended.append(done.returncode)
        if done.returncode == 0:
            break
    assert ended[-1] == 0
    assert len(ended) > 2
    record.rewind("gan", 20)
    assert [path.name for path in record.folder.iterdir()] == ["losses.jsonl"]


def test_a_record_moves_in_one_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    old, new = Record(tmp_path / "a" / "m"), Record(tmp_path / "m")
    old.append(LINE)
    monkeypatch.setattr("shutil.move", None)
    assert old.move(new).lines() == [LINE]
    assert not old.folder.exists()
