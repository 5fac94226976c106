"""The commands of the store as users type them, with and without a terminal."""

from __future__ import annotations

import io
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from anoscan.cli.cells import shortened
from anoscan.detector import Detector
from anoscan.model import store, versions
from tests.cli.test_cli import Run, finished, run
from tests.conftest import Digits
from tests.model.test_store import add, write

__all__ = ["run"]  # a fixture

TINY = ("--images-shown", 64, "--encoder-images-shown", 64, "--width", 4, "--quiet")
EVENT = {
    "at", "action", "by", "folders", "images", "threshold", "false_alarm_rate", "sha256", "note",
}  # fmt: skip


class Terminal(io.StringIO):
    """A stream that a user sits at."""

    def isatty(self) -> bool:
        return True


@pytest.fixture
def answer(run: Run, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Run a command at a terminal; `stdin` is what the user types."""

    def call(*arguments: object, stdin: bytes = b"") -> object:
        with monkeypatch.context() as patch:
            typed, shown = Terminal(stdin.decode()), Terminal()
            patch.setattr(sys, "stderr", shown)
            real = io.TextIOWrapper
            patch.setattr(io, "TextIOWrapper", lambda *_: typed)
            result = run(*arguments)
            patch.setattr(io, "TextIOWrapper", real)
        result.err += shown.getvalue()
        return result

    return call  # type: ignore[return-value]


@pytest.fixture(scope="module")
def model_file(few: Digits, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of a second's training."""
    path = tmp_path_factory.mktemp("model") / "m.safetensors"
    shown = {"images_shown": 64, "encoder_images_shown": 64, "width": 4}
    return Path(Detector.train(few.normal, path=path, workers=1, **shown).reference.path)


@pytest.fixture
def digits_model(model_file: Path) -> Path:
    """A copy of the trained model in the store, named digits."""
    path = store.path_for("digits")
    path.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(model_file, path)
    return path


@pytest.mark.parametrize("typed", [b"n\n", b"\n", b"", b"yes please\n"])
def test_at_a_terminal_a_model_is_removed_only_after_a_yes(answer: Run, typed: bytes) -> None:
    add("a")
    result = answer("models", "remove", "a", stdin=typed)
    assert result.code == 1
    assert "This removes the model a. `anoscan models restore a` takes it back. Go on? [y/N]" in (
        result.err
    )
    assert "nothing was changed" in result.err
    assert store.path_for("a").exists()
    assert answer("models", "remove", "a", stdin=b"Y\n").code == 0
    assert not store.path_for("a").exists()


def test_yes_asks_nothing(answer: Run) -> None:
    add("a")
    result = answer("models", "remove", "a", "--yes")
    assert (result.code, "Go on?" in result.err) == (0, False)


def test_without_a_terminal_nothing_is_asked(run: Run) -> None:
    add("a")
    assert run("models", "remove", "a", stdin=b"n\n").code == 0
    assert not store.path_for("a").exists()


def test_replacing_by_rename_and_import_asks_too(answer: Run) -> None:
    for name in "ab":
        add(name)
    file = write(store.models_folder() / "x")
    for command in (
        ("models", "rename", "a", "b", "--force"),
        ("models", "import", file, "--name", "b", "--force"),
    ):
        result = answer(*command, stdin=b"n\n")
        assert (result.code, "This replaces the model b." in result.err) == (1, True)
    # Nothing is replaced here, so nothing is asked.
    assert answer("models", "rename", "a", "c", "--force").code == 0


def test_a_purge_is_not_said_to_be_taken_back(answer: Run) -> None:
    add("a")
    result = answer("models", "remove", "a", "--purge", stdin=b"y\n")
    assert (result.code, "Nothing brings it back." in result.err) == (0, True)
    assert "models restore" not in result.err


def test_training_over_a_model_asks_before_any_image_is_read(answer: Run) -> None:
    add("a")
    result = answer("train", "no-such-folder", "--name", "a", "--force", stdin=b"n\n")
    assert result.code == 1
    assert "This replaces the model a." in result.err
    result = answer("train", "no-such-folder", "--name", "a", "--force", "--yes")
    assert "no-such-folder does not exist" in result.err
    assert "does not exist" in answer("train", "no-such-folder", "--name", "b", "--force").err


def test_calibration_asks_where_it_changes_a_model(answer: Run, digits_model: Path) -> None:
    before = digits_model.read_bytes()
    rate = ("--false-alarm-rate", "3%")
    result = answer("calibrate", "digits", *rate, stdin=b"n\n")
    assert (result.code, "This changes the model digits." in result.err) == (1, True)
    assert digits_model.read_bytes() == before
    assert answer("calibrate", "digits", *rate, "--name", "new").code == 0
    result = answer("calibrate", "digits", *rate, "--name", "new", "--force", stdin=b"n\n")
    assert "This replaces the model new." in result.err


def test_a_calibration_is_taken_back_and_both_are_in_the_history(
    run: Run, digits_model: Path, few: Digits
) -> None:
    before = digits_model.read_bytes()
    assert run("calibrate", "digits", few.queries, "--false-alarm-rate", "7%").code == 0
    after = digits_model.read_bytes()
    restored = run("models", "restore", "digits")
    assert restored.code == 0
    assert "restored digits, as it was before calibrate" in restored.err
    assert "older versions are kept" in restored.err
    assert digits_model.read_bytes() == before
    document = run("models", "history", "digits", "--json").json
    assert set(document) == {"schema", "name", "path", "exists", "events", "kept"}
    assert document["schema"] == "anoscan.history/1"
    calibrated, back = document["events"]
    assert set(calibrated) == set(back) == EVENT
    assert (calibrated["action"], calibrated["images"]) == ("calibrate", 40)
    assert calibrated["folders"] == [str(few.queries.absolute())]
    assert calibrated["false_alarm_rate"] == 0.07
    assert calibrated["threshold"] > 0
    assert back["note"] == "as before calibrate"
    assert run("models", "restore", "digits", "--forward").code == 0
    assert digits_model.read_bytes() == after


def test_a_training_over_a_model_is_taken_back_and_dated_beside_it(run: Run, few: Digits) -> None:
    assert run("train", few.normal, "--name", "a", *TINY).code == 0
    path = store.path_for("a")
    first = path.read_bytes()
    assert run("train", few.normal, "--name", "a", "--force", "--seed", 1, *TINY).code == 0
    assert run("train", few.normal, "--name", "b", "--seed", 1, *TINY).code == 0
    # The dates of the history are not in the file: the same images and seed give the same bytes.
    assert store.path_for("b").read_bytes() == path.read_bytes() != first
    shown = run("models", "history", "a")
    assert "before train" in shown.out
    assert run("models", "restore", "a").code == 0
    assert path.read_bytes() == first
    events = run("models", "history", "a", "--json").json["events"]
    assert [event["folders"] for event in events[:2]] == [[str(few.normal)]] * 2
    event = events[0]
    assert (event["action"], event["images"]) == ("train", 90)
    assert event["sha256"]


def test_the_history_and_the_list_fit_80_columns_at_a_terminal(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    name = "a-very-long-name-of-a-camera-and-a-product-and-a-batch-0042"
    path = add(name)
    with versions.keeping(path, "calibrate"):
        write(path.with_name("new"), anoscan_version="0.2.0").replace(path)
    store.remove(name)
    store.restore(name)
    shown = run("models", "list")
    lines = shown.out.splitlines()
    assert max(map(len, lines)) <= 80
    assert "…" in shown.out
    assert any("0042 *" in line and "2 (" not in line for line in lines)
    history = run("models", "history", name)
    table = [line for line in history.out.splitlines() if not line.startswith("model:")]
    assert max(map(len, table)) <= 80
    monkeypatch.delenv("COLUMNS")
    assert name in run("models", "list").out


def test_names_are_shortened_in_the_middle() -> None:
    assert shortened("short.png", 20) == "short.png"
    long = "folder/of/some/camera/image-000123.png"
    cut = shortened(long, 20)
    assert len(cut) == 20
    assert cut.startswith("folder")
    assert cut.endswith("000123.png")
    assert shortened("字" * 30, 11).endswith("字")
    assert shortened(long, 2) == "…"


def test_a_pin_is_said_by_the_list_and_by_the_commands(
    run: Run, digits_model: Path, few: Digits
) -> None:
    add("newer", trained_at=4_000_000_000)
    assert run("models", "use", "digits").code == 0
    scored = run("score", few.queries, "--top", 1)
    assert "using the model that is pinned: digits" in scored.err
    listed = run("models", "list")
    assert "digits *" in listed.out
    assert "* pinned by anoscan models use" in listed.out
    document = run("models", "list", "--json").json
    assert document["pinned"] == "digits"
    assert [model["pinned"] for model in document["models"]] == [True, False]
    removed = run("models", "remove", "digits")
    assert "it was the pinned default" in removed.err
    assert run("models", "list", "--json").json["removed"][0]["name"] == "digits"
    assert "removed, and kept for anoscan models restore: digits" in run("models", "list").out


def test_without_a_pin_the_model_its_date_and_the_reason_are_said(
    run: Run, digits_model: Path, few: Digits
) -> None:
    os.utime(digits_model, (86_400, 86_400))
    scored = run("score", few.queries, "--top", 1)
    assert "using the model trained last: digits (1970-01-02 00:00 UTC;" in scored.err
    assert "anoscan models use" in scored.err


@pytest.mark.parametrize("arguments", [[], ["a", "--none"]])
def test_use_needs_a_name_or_none(run: Run, arguments: list[str]) -> None:
    result = run("models", "use", *arguments)
    assert (result.code, "needs NAME, or --none" in result.err) == (2, True)
    assert run("models", "use", "--none").code == 0


def test_a_history_that_cannot_be_written_is_said_in_one_line(digits_model: Path) -> None:
    digits_model.with_name("digits.history.jsonl").mkdir()
    result = finished("calibrate", "digits", "--false-alarm-rate", "3%")
    assert result.code == 0
    assert "Warning: " in result.err
    assert "lacks this calibrate" in result.err
    assert ".py" not in result.err


def test_python_users_keep_versions_too(digits_model: Path, few: Digits) -> None:
    before = digits_model.read_bytes()
    Detector.load("digits", workers=1).calibrate([few.queries])
    assert digits_model.read_bytes() != before
    store.restore("digits")
    assert digits_model.read_bytes() == before


def test_the_commands_of_the_store_import_no_torch(digits_model: Path) -> None:
    code = (
        "import sys, json\n"
        "from anoscan.cli import app\n"
        "for arguments in json.loads(sys.argv[1]):\n"
        "    app(['models', *arguments], standalone_mode=False)\n"
        "heavy = {'torch', 'sklearn', 'scipy', 'numpy', 'PIL'} & set(sys.modules)\n"
        "sys.exit(f'imported {heavy}' if heavy else 0)\n"
    )
    commands = [["list"], ["use", "digits"], ["history", "digits"], ["remove", "digits"],
                ["restore", "digits"], ["use", "--none"], ["rename", "digits", "b"]]  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-c", code, json.dumps(commands)], capture_output=True, check=False
    )
    assert done.returncode == 0, done.stderr
