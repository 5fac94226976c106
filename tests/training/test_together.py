"""Trainings that several processes share: the same steps, one result, and an end in any case."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from anoscan.core import launch, team
from anoscan.core.errors import ProcessLost, TrainingInterrupted
from anoscan.core.launch import Launch
from anoscan.core.shares import WHOLE, Share
from anoscan.core.team import Team
from tests.conftest import Digits

ROOT = Path(__file__).parents[2]
SETTINGS = [
    *("--images-shown", "1600", "--encoder-images-shown", "640", "--batch-size", "32"),
    *("--reconstruction-images-shown", "640", "--rotation-images-shown", "640", "--width", "8"),
    *("--device", "cpu", "--precision", "float32"),
]


def test_shares_are_parts_of_one_batch_of_equal_size_or_one_more() -> None:
    for size in (2, 3, 5):
        shares = [Share(rank, size, 7) for rank in range(size)]
        rows = [row for share in shares for row in range(7)[share.rows]]
        assert rows == list(range(7))
        assert sum(share.weight for share in shares) == pytest.approx(1)
        lengths = {len(range(7)[share.rows]) for share in shares}
        assert max(lengths) - min(lengths) <= 1


def test_random_numbers_of_a_share_are_those_of_its_images() -> None:
    def draw(n: int) -> torch.Tensor:
        return torch.rand(n, 2, generator=torch.Generator().manual_seed(0))

    parts = [Share(rank, 3, 7).drawn(draw, n) for rank, n in enumerate((2, 2, 3))]
    assert torch.equal(torch.cat(parts), WHOLE.drawn(draw, 7))


def environment(rank: int, size: int, port: int) -> dict[str, str]:
    return os.environ | {
        "TORCHELASTIC_RUN_ID": "test",
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(size),
        "LOCAL_WORLD_SIZE": str(size),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "OMP_NUM_THREADS": "1",
    }


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def test_steps_of_two_processes_are_those_of_one() -> None:
    port = free_port()
    command = [sys.executable, "-m", "tests.training.sharing"]
    leader, other = (environment(rank, 2, port) for rank in range(2))
    with subprocess.Popen(command, cwd=ROOT, env=other) as second:
        first = subprocess.run(command, cwd=ROOT, env=leader, stdout=subprocess.PIPE, check=True)
    assert second.returncode == 0
    found = json.loads(first.stdout)
    assert len(found) == 7
    for case, result in found.items():
        # Sums in another order cost the last digits of float32 only.
        assert result["apart"] < 1e-4, case
        shared, alone = result["losses"]
        assert shared == pytest.approx(alone, rel=1e-4, abs=1e-6), case


# --- messages and the end of a team -------------------------------------------------------------


def team_of(size: int, rank: int = 1) -> Team:
    return Team(Launch(rank, size, rank, size), torch.distributed.HashStore())


def test_a_process_that_ended_is_named() -> None:
    crew = team_of(3)
    crew.store.set("alive/0", "")
    error = crew.lost(ProcessLost("Connection closed by peer"))
    assert "process 2 of 3 has ended or hangs (Connection closed by peer)" in error.message
    assert "--resume" in str(error.hint)
    assert [crew.first_to_speak(), crew.first_to_speak()] == [True, False]


def test_nobody_waits_for_a_leader_that_is_silent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(team, "SILENCE", 0.1)
    crew = team_of(2)
    crew.store.add("beats", 1)
    with pytest.raises(ProcessLost):
        crew.wait_for("order/0", stopping=lambda: True)


def test_a_signal_ends_the_wait_for_a_leader_that_lives() -> None:
    crew, asked = team_of(2), iter(range(99))
    crew.store.add("beats", 1)

    def stopping() -> bool:
        crew.store.add("beats", 1)
        return next(asked) > 1

    with pytest.raises(TrainingInterrupted):
        crew.wait_for("order/0", stopping)


def test_one_process_has_nobody_to_agree_with(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in environment(0, 1, 1).items():
        monkeypatch.setenv(name, value)
    assert launch.launched() is None
    assert team.ALONE.agree(True, False) == (True, False)
    assert team.ALONE.share(9) is WHOLE


@pytest.mark.parametrize(("local_rank", "lines"), [(0, 1), (1, 0)])
def test_other_commands_are_refused_by_one_process(
    local_rank: int,
    lines: int,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    from anoscan.cli import main

    for name, value in environment(local_rank, 2, 1).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(sys, "argv", ["anoscan", "score", "images"])
    with pytest.raises(SystemExit) as ended:
        main()
    out, err = capsys.readouterr()
    assert (ended.value.code, out, err.count("\n")) == (2, "", lines)
    assert "without torchrun: anoscan score" in err or not lines


# --- the whole program, under torchrun ----------------------------------------------------------


def torchrun(processes: int, *arguments: object) -> subprocess.Popen[str]:
    start = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(processes)]
    return subprocess.Popen(
        [*start, "-m", "anoscan", "train", *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        env={k: v for k, v in os.environ.items() if not k.startswith("OMP")},
    )


def apart(one: Path, other: Path, network: str) -> float:
    """Distance of the weights of two models, relative to their length."""
    a, b = load_file(one), load_file(other)
    names = [name for name in a if name.startswith(network)]
    far = sum(float((a[name] - b[name]).square().sum()) for name in names)
    return float((far / sum(float(a[name].square().sum()) for name in names)) ** 0.5)


def alone(folder: Path, name: str, *more: str) -> None:
    command = [sys.executable, "-m", "anoscan", "train", str(folder), "--name", name]
    command += [*SETTINGS, *more, "-q"]
    done = subprocess.run(command, capture_output=True, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_two_processes_make_one_model_that_is_nearly_that_of_one(few: Digits) -> None:
    home = Path(os.environ["ANOSCAN_HOME"])
    process = torchrun(2, few.normal, "--name", "two", "--json", *SETTINGS)
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    assert json.loads(out)["model"]["name"] == "two"
    assert err.count("calibrating: 5 of 5 parts") == 1
    assert [file.name for file in home.rglob("*.safetensors")] == ["two.safetensors"]
    alone(few.normal, "one")
    one, two = home / "models" / "one.safetensors", home / "models" / "two.safetensors"
    assert apart(one, two, "generator") < 0.02
    assert apart(one, two, "discriminator") < 0.02


def killed(process: subprocess.Popen[str], rank: int, number: int) -> tuple[str, str]:
    """Send a signal to one process once the training is under way; return what was printed."""
    assert process.stderr is not None
    seen = ""
    while "learning normal" not in seen:
        seen += (line := process.stderr.readline())
        assert line, seen
    for file in Path("/proc").glob("[0-9]*/environ"):
        try:
            facts = file.read_bytes().split(b"\0")
            parent = int(file.with_name("stat").read_text().rpartition(")")[2].split()[1])
        except OSError:
            continue
        if parent == process.pid and f"RANK={rank}".encode() in facts:
            os.kill(int(file.parent.name), number)
    out, err = process.communicate(timeout=60)
    return out, seen + err


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc").exists(), reason="finds processes by /proc")
def test_an_interrupted_training_goes_on_with_one_process(few: Digits) -> None:
    long = ["--images-shown", "12800"]
    process = torchrun(2, few.normal, "--name", "two", *SETTINGS, *long)
    out, err = killed(process, 1, signal.SIGTERM)
    assert (process.returncode, out) == (1, "")
    assert "a checkpoint is kept" in err
    assert "--resume" in err
    alone(few.normal, "two", "--resume", *long)
    assert (Path(os.environ["ANOSCAN_HOME"]) / "models" / "two.safetensors").exists()


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc").exists(), reason="finds processes by /proc")
@pytest.mark.parametrize("rank", [0, 2])
def test_a_process_that_dies_ends_all_with_one_message(few: Digits, rank: int) -> None:
    process = torchrun(3, few.normal, "--name", "three", *SETTINGS, "--images-shown", "1000000")
    start = time.monotonic()
    out, err = killed(process, rank, signal.SIGKILL)
    assert (process.returncode, out) == (1, "")
    assert len(re.findall("^Error: ", err, re.MULTILINE)) == 1
    assert f"process {rank} of 3 has ended or hangs" in err
    assert time.monotonic() - start < 120
    assert not list(Path(os.environ["ANOSCAN_HOME"]).rglob("three.safetensors"))
