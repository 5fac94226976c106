"""Standard streams that are closed, full or without a reader, in processes of their own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from anoscan.cli import queries, streams
from anoscan.core.errors import InputError
from tests.cli.test_cli import Result, _source
from tests.conftest import Digits

pytestmark = pytest.mark.skipif(os.name != "posix", reason="the streams are set up by sh")


@pytest.fixture
def commands(few: Digits, model_file: Path) -> dict[str, list[str]]:
    score = ["score", str(few.queries), "--model", str(model_file), "-q"]
    evaluate = ["eval", "--labels", str(few.labels), "--model", str(model_file), "-q"]
    return {
        "version": ["--version"],
        "help": ["--help"],
        "models": ["models", "list"],
        "dry-run": ["train", str(few.normal), "--dry-run"],
        "table": score,
        "json": [*score, "--json"],
        "jsonl": [*score, "--jsonl"],
        "csv": [*score, "--csv"],
        "eval": evaluate,
    }


COMMANDS = (
    "version",
    "help",
    "models",
    "table",
    "json",
    *(pytest.param(name, marks=pytest.mark.slow) for name in ("dry-run", "jsonl", "csv", "eval")),
)


def run(arguments: list[str], redirections: str, stdout: int = subprocess.PIPE) -> Result:
    """Run anoscan as a shell does with these redirections."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": _source()}
    done = subprocess.run(
        ["sh", "-c", f'"$0" -m anoscan "$@" {redirections}', sys.executable, *arguments],
        stdin=subprocess.DEVNULL,
        stdout=stdout,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
        check=False,
        timeout=300,
    )
    return Result(done.returncode, done.stdout or "", done.stderr)


@pytest.mark.parametrize("name", COMMANDS)
def test_a_closed_stdout_is_a_failure_in_one_line(
    name: str, commands: dict[str, list[str]]
) -> None:
    result = run(commands[name], ">&-")
    assert result.code == 1
    assert result.err == "Error: cannot write to stdout: it is closed.\n"


@pytest.mark.parametrize("name", COMMANDS)
def test_a_reader_that_is_gone_is_a_failure_without_a_word(
    name: str, commands: dict[str, list[str]]
) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    try:
        result = run(commands[name], "", stdout=writer)
    finally:
        os.close(writer)
    assert result.code == 1
    assert result.err == ""


@pytest.mark.parametrize("name", ["version", "help", "models", "dry-run", "table", "eval"])
def test_results_need_neither_stdin_nor_stderr(name: str, commands: dict[str, list[str]]) -> None:
    result = run(commands[name], "<&- 2>&-")
    assert result.code == 0
    assert result.out
    assert "Traceback" not in result.out
    if name == "dry-run":
        assert json.loads(result.out)["schema"].startswith("anoscan.")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")
@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_a_full_disk_below_stdout_is_named(
    unbuffered: str, commands: dict[str, list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONUNBUFFERED", unbuffered)
    for name in ("version", "help", "models"):
        result = run(commands[name], ">/dev/full")
        assert result.code == 1
        assert result.err == "Error: cannot write to stdout: No space left on device.\n"


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")
def test_messages_that_nobody_can_read_do_not_end_a_job(commands: dict[str, list[str]]) -> None:
    talkative = [argument for argument in commands["jsonl"] if argument != "-q"]
    result = run(talkative, "2>/dev/full")
    assert result.code == 0
    assert len(result.out.splitlines()) == 40


def test_no_closed_stream_gets_into_a_file(commands: dict[str, list[str]], tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    result = run([*commands["table"], "--report", str(page)], "<&- >&- 2>&-")
    assert result.code == 1
    assert page.read_bytes().startswith(b"<!doctype html>")
    assert b"anomalous" not in page.read_bytes().splitlines()[0]


def test_a_list_on_a_closed_stdin_is_bad_input(commands: dict[str, list[str]]) -> None:
    for more in ([], ["--allow-empty"]):
        result = run(["score", "-", *more, *commands["jsonl"][2:]], "<&-")
        assert result.code == 1
        assert result.err == "Error: cannot read the list on stdin: it is closed.\n"


def test_no_stream_is_touched_that_is_no_file(monkeypatch: pytest.MonkeyPatch) -> None:
    before = sys.stdout, sys.stderr
    streams.prepare()
    assert (sys.stdout, sys.stderr) == before
    monkeypatch.setattr(sys, "stdin", None)
    streams.prepare()
    with pytest.raises(InputError, match="it is closed"):
        queries.gather(["-"])
