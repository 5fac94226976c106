"""Files that are complete, the memory of a watch, and its command."""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path

import pytest

from anoscan.core.errors import AnoscanError, InputError, UsageError
from anoscan.report.watching import (
    SCORED,
    SKIPPED,
    Arrivals,
    Command,
    Memory,
    Version,
    default_state,
    version_of,
)

SETTLE = 2.0


class Clock:
    """Seconds since 1970, which stand still between calls of `pass_`."""

    def __init__(self) -> None:
        self.now = time.time()

    def __call__(self) -> float:
        return self.now

    def pass_(self, seconds: float) -> None:
        self.now += seconds


@pytest.fixture
def clock() -> Clock:
    return Clock()


def written(file: Path, content: bytes, at: float) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(content)
    os.utime(file, (at, at))
    return file


def names(arrivals: Arrivals) -> list[str]:
    return [file.inside for file in arrivals.complete()]


# --- files that are complete --------------------------------------------------------------------


def test_a_file_that_grows_is_complete_when_it_has_rested(tmp_path: Path, clock: Clock) -> None:
    arrivals = Arrivals(tmp_path, SETTLE, clock)
    file = tmp_path / "a.png"
    for step in range(1, 5):
        arrivals.note([written(file, b"x" * step, clock.now)])
        assert names(arrivals) == []
        clock.pass_(SETTLE - 0.5)
    assert arrivals.waiting == 1
    clock.pass_(0.6)
    assert names(arrivals) == ["a.png"]
    clock.pass_(60)
    arrivals.scan()
    assert names(arrivals) == []


def test_growth_that_no_event_tells_is_seen_all_the_same(tmp_path: Path, clock: Clock) -> None:
    arrivals = Arrivals(tmp_path, SETTLE, clock)
    arrivals.note([written(tmp_path / "a.png", b"x", clock.now)])
    clock.pass_(SETTLE)
    written(tmp_path / "a.png", b"xx", clock.now)
    assert names(arrivals) == []
    clock.pass_(SETTLE)
    assert names(arrivals) == ["a.png"]


def test_a_file_that_was_moved_in_needs_a_glance_only(tmp_path: Path, clock: Clock) -> None:
    arrivals = Arrivals(tmp_path, SETTLE, clock)
    arrivals.note([written(tmp_path / "a.png", b"x", clock.now - 100)])
    assert names(arrivals) == []
    clock.pass_(0.5)
    assert names(arrivals) == ["a.png"]


def test_a_file_whose_clock_is_behind_is_not_taken_while_it_grows(
    tmp_path: Path, clock: Clock
) -> None:
    arrivals = Arrivals(tmp_path, SETTLE, clock)
    for step in range(1, 5):
        arrivals.note([written(tmp_path / "a.png", b"x" * step, clock.now - 100)])
        assert names(arrivals) == []
        clock.pass_(0.2)
        assert names(arrivals) == []


def test_names_of_unfinished_and_hidden_files_are_passed_over(tmp_path: Path, clock: Clock) -> None:
    arrivals = Arrivals(tmp_path, SETTLE, clock)
    some = ["a.png.part", "b.tmp", ".c.png.Xa7", ".d/e.png", "__MACOSX/f.png", "g.txt", "ok.png"]
    paths = [written(tmp_path / name, b"x", clock.now - 9) for name in some]
    arrivals.note([*paths, tmp_path.parent / "elsewhere.png"])
    arrivals.scan()
    clock.pass_(SETTLE)
    assert names(arrivals) == ["ok.png"]


def test_empty_and_vanished_files_are_never_complete(tmp_path: Path, clock: Clock) -> None:
    arrivals = Arrivals(tmp_path, SETTLE, clock)
    gone = written(tmp_path / "gone.png", b"x", clock.now)
    arrivals.note([written(tmp_path / "empty.png", b"", clock.now - 99), gone])
    gone.unlink()
    clock.pass_(SETTLE)
    assert names(arrivals) == []
    assert arrivals.waiting == 0


def test_a_file_that_changes_later_is_complete_again(tmp_path: Path, clock: Clock) -> None:
    arrivals = Arrivals(tmp_path, SETTLE, clock)
    for content in (b"x", b"yy"):
        written(tmp_path / "a.png", content, clock.now - 9)
        arrivals.scan()
        clock.pass_(SETTLE)
        assert names(arrivals) == ["a.png"]


def test_folders_ask_for_a_scan_and_the_oldest_file_comes_first(
    tmp_path: Path, clock: Clock
) -> None:
    arrivals = Arrivals(tmp_path, SETTLE, clock)
    written(tmp_path / "new/a.png", b"x", clock.now - 10)
    written(tmp_path / "new/deep/b.png", b"x", clock.now - 20)
    assert arrivals.note([tmp_path / "new"])
    assert not arrivals.note([tmp_path / "new/a.png"])
    arrivals.scan()
    clock.pass_(SETTLE)
    assert names(arrivals) == ["new/deep/b.png", "new/a.png"]


def test_a_folder_that_is_gone_is_an_error_of_the_scan(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot be read"):
        Arrivals(tmp_path / "gone", SETTLE).scan()


# --- the memory ---------------------------------------------------------------------------------

ONE, TWO = Version(1, 10), Version(2, 20)


def test_what_was_done_is_known_again(tmp_path: Path) -> None:
    file = tmp_path / "deep/state.jsonl"
    memory = Memory(file, tmp_path, "m")
    assert memory.new
    memory.add("a.png", ONE, SCORED)
    memory.add("b.tif/3", TWO, SKIPPED)
    memory.pass_by({"c.png": ONE, "d.png": TWO})
    memory.close()
    again = Memory(file, tmp_path, "m")
    assert not again.new
    assert not again.other_model
    for image, version in (("a.png", ONE), ("b.tif/3", TWO), ("c.png", ONE), ("d.png", TWO)):
        assert (image, version) in again
    assert ("a.png", TWO) not in again
    assert ("b.tif", TWO) not in again
    again.close()
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    assert lines[0] == {
        "schema": "anoscan.watch-state/1",
        "folder": os.path.realpath(tmp_path),
        "model": "m",
    }
    assert len(lines) == 5


@pytest.mark.parametrize("kept", range(0, 400, 7))
def test_a_line_that_a_kill_cut_off_spoils_no_other(tmp_path: Path, kept: int) -> None:
    file = tmp_path / "state.jsonl"
    memory = Memory(file, tmp_path, "m")
    for name in ("a.png", "b.png", "c.png"):
        memory.add(name, ONE, SCORED)
    memory.close()
    whole = file.read_bytes()
    file.write_bytes(whole[:kept])
    complete = {json.loads(x).get("image") for x in whole[:kept].split(b"\n")[:-1]} - {None}
    memory = Memory(file, tmp_path, "m")
    assert {name for name in ("a.png", "b.png", "c.png") if (name, ONE) in memory} >= complete
    memory.add("d.png", TWO, SCORED)
    memory.close()
    again = Memory(file, tmp_path, "m")
    assert ("d.png", TWO) in again
    assert all((name, ONE) in again for name in complete)
    again.close()


def test_two_watches_cannot_share_a_memory(tmp_path: Path) -> None:
    file = tmp_path / "state.jsonl"
    memory = Memory(file, tmp_path, "m")
    with pytest.raises(AnoscanError, match="another watch uses"):
        Memory(file, tmp_path, "m")
    memory.close()
    Memory(file, tmp_path, "m").close()


def test_a_memory_of_another_folder_or_of_no_watch_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "state.jsonl"
    Memory(file, tmp_path, "m").close()
    with pytest.raises(InputError, match="is of another folder"):
        Memory(file, tmp_path / "other", "m")
    for content in (b"\x89PNG\r\n", b"path,label\na,1\n", b"x"):
        file.write_bytes(content)
        with pytest.raises(InputError, match="is no file of anoscan watch"):
            Memory(file, tmp_path, "m")
        assert file.read_bytes() == content
    with pytest.raises(AnoscanError, match=r"--state|cannot write"):
        Memory(tmp_path, tmp_path, "m")


def test_another_model_goes_on_with_a_memory_and_it_is_said(tmp_path: Path) -> None:
    file = tmp_path / "state.jsonl"
    memory = Memory(file, tmp_path, "first")
    memory.add("a.png", ONE, SCORED)
    memory.close()
    for model, other in (("second", True), ("second", False)):
        memory = Memory(file, tmp_path, model)
        assert memory.other_model is other
        assert ("a.png", ONE) in memory
        memory.close()


def test_alarms_are_kept_until_they_are_handled(tmp_path: Path) -> None:
    file = tmp_path / "state.jsonl"
    memory = Memory(file, tmp_path, "m")
    memory.add("a.png", ONE, SCORED, {"score": 5})
    memory.add("b.png", ONE, SCORED, {"score": 6})
    memory.handled("a.png")
    memory.close()
    again = Memory(file, tmp_path, "m")
    assert again.alarms == (("b.png", {"score": 6}),)
    again.handled("b.png")
    again.close()
    last = Memory(file, tmp_path, "m")
    assert last.alarms == ()
    last.close()


def test_the_default_file_is_of_the_folder_and_the_model(tmp_path: Path) -> None:
    home = tmp_path / "home"
    first = default_state(home, tmp_path / "a", "bolts", "1")
    assert first.parent == home / "watch"
    assert first.name.startswith("bolts-")
    others = {default_state(home, tmp_path / "b", "bolts", "1")}
    others |= {default_state(home, tmp_path / "a", "bolts", "2")}
    assert len(others | {first}) == 3


def test_a_version_is_of_size_and_time(tmp_path: Path) -> None:
    file = written(tmp_path / "a.png", b"xyz", 5.0)
    assert version_of(file) == Version(3, 5_000_000_000)
    assert version_of(tmp_path / "none.png") is None
    assert version_of(tmp_path / ("x" * 5000)) is None


# --- the command --------------------------------------------------------------------------------


def test_a_command_gets_the_result_on_stdin_and_is_split_without_a_shell(tmp_path: Path) -> None:
    script = (
        "import json,sys; json.dump([json.load(sys.stdin), sys.argv[2:]], open(sys.argv[1], 'w'))"
    )
    target = tmp_path / "a b.json"
    line = f"{sys.executable} -c \"{script}\" '{target}' '$HOME; ls' \\*"
    assert Command.of(line, 30).run({"score": 1.5, "path": "ü"}) is None
    assert json.loads(target.read_text()) == [{"score": 1.5, "path": "ü"}, ["$HOME; ls", "*"]]


def test_what_fails_of_a_command_is_said(tmp_path: Path) -> None:
    assert "cannot be run: No such file" in str(Command.of(str(tmp_path / "none"), 1).run({}))
    failing = Command.of(f"{sys.executable} -c 'raise SystemExit(3)'", 30)
    assert failing.run({"x": "y" * 200_000}) == "ended with exit code 3"
    for text in ("'", "", "  "):
        with pytest.raises(UsageError, match="--exec"):
            Command.of(text, 1)


@pytest.mark.skipif(os.name != "posix", reason="groups of processes are POSIX")
def test_a_command_that_takes_too_long_ends_with_all_that_it_started(tmp_path: Path) -> None:
    alive = tmp_path / "alive"
    slow = Command.of(f"sh -c 'sleep 3; touch {alive}' ; true", 0.3)
    begun = time.monotonic()
    nested = Command.of(f'sh -c "(sleep 2; touch {alive}) & wait"', 0.3)
    assert slow.run({}) == nested.run({}) == "did not end within 0.3 seconds"
    assert time.monotonic() - begun < 2
    time.sleep(2.2)
    assert not alive.exists()


def test_what_a_command_prints_does_not_mix_with_results(
    capfd: pytest.CaptureFixture[str],
) -> None:
    assert Command.of("echo hello", 30).run({}) is None
    out, err = capfd.readouterr()
    assert out == ""
    assert err == "hello\n"
