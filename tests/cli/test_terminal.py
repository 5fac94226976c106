"""Pictures in the terminal."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from anoscan.cli import terminal
from anoscan.cli.app import app
from anoscan.cli.terminal import Gallery
from anoscan.core.errors import UsageError
from anoscan.report import pictures
from anoscan.report.pictures import Views
from tests.conftest import Digits
from tests.report.test_html_page import result, seen

pytest.importorskip("textual_image")


def test_the_most_anomalous_are_kept_and_the_first_of_equals(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    gallery = Gallery(3)
    for name, score in [("a", 1.0), ("b", 5.0), ("c", 1.0), ("d", 3.0), ("e", -2.0), ("f", 1.0)]:
        gallery.add(result(name, score), seen(name, tmp_path))
    assert [path for path, _ in gallery.show(80)] == ["b", "d", "a"]


def test_views_stand_side_by_side_in_the_proportions_of_the_query() -> None:
    grey = [Image.new("RGB", size, (shade,) * 3) for size, shade in
            [((80, 40), 10), ((16, 16), 120), ((64, 64), 250)]]  # fmt: skip
    row = pictures.side_by_side(Views(*grey), 100)
    assert row.size == (3 * 200 + 2 * 4, 100)
    assert [np.asarray(row)[50, x, 0] for x in (100, 304, 508)] == [10, 120, 250]


def test_a_missing_package_is_named_with_the_command_that_installs_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UsageError) as caught:
        Gallery(5)
    assert "anoscan[show]" in str(caught.value.hint)


def test_pictures_never_go_into_a_pipe() -> None:
    with pytest.raises(UsageError, match="terminal"):
        Gallery(5)


@pytest.mark.parametrize("form", ["--json", "--jsonl", "--csv"])
def test_pictures_never_mix_with_results_for_programs(form: str) -> None:
    with pytest.raises(UsageError, match="--show"):
        app(["score", ".", "--show", form], standalone_mode=False)


@pytest.mark.skipif(sys.platform == "win32", reason="needs a pseudo-terminal")
def test_on_a_terminal_the_top_images_follow_the_table(model_file: Path, few: Digits) -> None:
    import pty
    import termios

    ours, theirs = pty.openpty()
    termios.tcsetwinsize(theirs, (40, 80))
    command = [sys.executable, "-m", "anoscan", "score", str(few.queries), "--model",
               str(model_file), "--top", "2", "--show", "-q"]  # fmt: skip
    environment = os.environ | {"TERM": "xterm-256color", "COLORTERM": "truecolor"}
    environment.pop("NO_COLOR", None)
    running = subprocess.Popen(
        command, stdin=theirs, stdout=theirs, stderr=subprocess.PIPE, env=environment
    )
    os.close(theirs)
    output = b""
    try:
        while data := os.read(ours, 65536):
            output += data
    except OSError:  # what Linux says when the other end is closed
        pass
    _, errors = running.communicate()
    assert running.returncode == 0
    assert b"Traceback" not in errors  # though this terminal answers no question
    os.close(ours)

    text = output.decode()
    table, _, shown = text.partition("scored (38 not listed")
    assert "rank" in table
    assert "▀" not in table
    lines = [line for line in shown.splitlines() if "▀" in line or "▄" in line]
    assert 16 <= len(lines) <= 40
    plain = [re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", line) for line in lines]
    assert max(map(len, plain)) <= 80


def test_a_terminal_without_a_size_is_told_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.setattr(terminal, "_is_without_size", lambda: True)
    with pytest.raises(UsageError, match="says how large it is"):
        Gallery(1)
