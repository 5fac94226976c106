"""The recipes of docs/results.md: scripts are run, and other commands are read by the program."""

from __future__ import annotations

import configparser
import os
import re
import shlex
import subprocess
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import typer
import yaml
from PIL import Image

from anoscan.cli.app import app
from anoscan.detector import Detector
from anoscan.report import history
from tests.cli.test_cli import _source
from tests.conftest import Digits

PAGE = (Path(__file__).parent.parent / "docs" / "results.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    found = re.findall(rf"^```{language}\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
    assert found, language
    return found


def options_of(command: str) -> dict[str, Any]:
    """Values of the options of an ``anoscan`` command, as the program reads them."""
    first, name, *arguments = shlex.split(command)
    assert Path(first).name == "anoscan"
    group: Any = typer.main.get_command(app)
    with group.commands[name].make_context(name, arguments) as context:
        assert name != "score" or context.params["paths"]
        return dict(context.params)


@pytest.fixture(scope="module")
def home(few: Digits, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with the model ``bolts``."""
    home = tmp_path_factory.mktemp("store")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ANOSCAN_HOME", str(home))
        shown = {"images_shown": 640, "encoder_images_shown": 320, "width": 8}
        Detector.train(few.normal, name="bolts", **shown)
    return home


def nightly(folder: Path, home: Path, place: Path) -> subprocess.CompletedProcess[str]:
    """Run the script of the page as cron would: with little in the environment."""
    (place / "nightly.sh").write_text(blocks("sh")[0], encoding="utf-8")
    command = place / "anoscan"
    command.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -m anoscan "$@"\n')
    command.chmod(0o755)
    environment = {
        "PATH": f"{place}:/usr/bin:/bin",
        "ANOSCAN_HOME": str(home),
        "PYTHONPATH": _source(),
        "OMP_NUM_THREADS": "1",
    }
    return subprocess.run(
        ["sh", "nightly.sh", str(folder)],
        cwd=place,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.skipif(os.name == "nt", reason="the script is for a POSIX shell")
def test_the_script_for_cron_is_quiet_until_there_is_an_alarm(
    few: Digits, home: Path, tmp_path: Path
) -> None:
    night = tmp_path / "night"
    night.mkdir()
    done = nightly(night, home, tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    for image in sorted(few.normal.iterdir())[:20]:
        (night / image.name).write_bytes(image.read_bytes())
    (night / "bad.png").touch()
    done = nightly(night, home, tmp_path)
    assert (done.returncode, done.stdout) == (0, "")
    assert "1 image could not be read" in done.stderr
    assert "Alarm" not in done.stderr
    for number, noise in enumerate(np.random.default_rng(0).integers(0, 256, (40, 8, 8))):
        Image.fromarray(noise.astype(np.uint8)).save(night / f"noise{number}.png")
    done = nightly(night, home, tmp_path)
    assert (done.returncode, done.stdout) == (4, "")
    assert "Alarm: excess: " in done.stderr
    assert [run.scored for run in history.read(tmp_path / "history.csv")] == [0, 20, 60]
    (results,) = (tmp_path / "results").iterdir()
    assert len(results.read_text(encoding="utf-8").splitlines()) == 62


def test_the_line_of_the_crontab_runs_that_script() -> None:
    *settings, line = blocks("crontab")[0].splitlines()
    assert all(re.fullmatch(r"[A-Z]+=\S+", setting) for setting in settings)
    *times, command = line.split(maxsplit=5)
    assert all(re.fullmatch(r"\*|\d+", time) for time in times)
    assert "%" not in command  # cron would end the line there
    assert shlex.split(command)[-3:] == ["sh", "nightly.sh", "/data/tonight"]


def test_the_units_of_systemd_name_options_that_there_are() -> None:
    units = []
    for text in blocks("systemd"):
        unit = configparser.ConfigParser(interpolation=None)
        unit.optionxform = str  # type: ignore[assignment,method-assign]
        unit.read_string(text)
        units.append(unit)
    service, timer = units
    command = service["Service"]["ExecStart"]
    assert not re.sub("%%", "", command).count("%")
    found = options_of(command.replace("%%", "%"))
    assert found["fail_if"] == ["excess", "share>50%"]
    assert found["append"] == Path("history.csv")
    assert service["Service"]["SuccessExitStatus"] == "3"
    assert "OnFailure" in service["Unit"]
    assert set(timer["Timer"]) == {"OnCalendar", "Persistent"}


def test_the_job_of_github_actions_names_options_that_there_are() -> None:
    (text,) = blocks("yaml")
    steps = yaml.safe_load(text)["jobs"]["score"]["steps"]
    (command,) = [step["run"] for step in steps if "anoscan score" in step.get("run", "")]
    found = options_of(command.replace("\\\n", " "))
    assert found["fail_if"] == ["count>0"]
    (kept,) = [step["with"]["path"] for step in steps if "upload" in step.get("uses", "")]
    written = [*found["result_files"], found["report_file"]]
    assert kept.split() == [str(path) for path in written]


def test_the_dag_of_airflow_names_options_that_there_are(monkeypatch: pytest.MonkeyPatch) -> None:
    tasks: list[dict[str, Any]] = []

    class Dag:
        def __init__(self, *, dag_id: str, schedule: str, start_date: Any, catchup: bool) -> None:
            assert len(schedule.split()) == 5

        def __enter__(self) -> None:
            pass

        def __exit__(self, *failure: object) -> None:
            pass

    names = "airflow", "airflow.sdk", "airflow.providers", "airflow.providers.standard"
    names += "airflow.providers.standard.operators", "airflow.providers.standard.operators.bash"
    for name in names:
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    sys.modules["airflow.sdk"].DAG = Dag  # type: ignore[attr-defined]
    sys.modules[names[-1]].BashOperator = lambda **task: tasks.append(task)  # type: ignore[attr-defined]
    exec(next(block for block in blocks("python") if "airflow" in block), {})
    (task,) = tasks
    command, _, otherwise = task["bash_command"].replace("{{ ds }}", "2026-01-01").partition(" || ")
    assert otherwise == "[ $? -eq 3 ]"
    found = options_of(command)
    assert found["fail_if"] == ["excess"]
    assert found["result_files"] == [Path("/srv/bolts/results/2026-01-01.parquet")]
    history._check_kind(found["append"], "--append")


@pytest.mark.skipif(os.name == "nt", reason="the script is for a POSIX shell")
@pytest.mark.parametrize(("code", "expected"), [(0, 0), (3, 0), (4, 1), (1, 1)])
def test_the_end_of_a_command_lets_skipped_files_pass(code: int, expected: int) -> None:
    ends = f"sh -c 'exit {code}' || [ $? -eq 3 ]"
    assert ends.partition(" || ")[2] in PAGE
    assert subprocess.run(["sh", "-c", ends], check=False).returncode == expected


def test_the_first_command_and_those_of_python_are_right(
    few: Digits, home: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    command = blocks("")[0].replace("\\\n", " ")
    found = options_of(command)
    assert found["result_files"] == [Path("results.xlsx"), Path("regions.coco.json")]
    monkeypatch.setenv("ANOSCAN_HOME", str(home))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tonight").symlink_to(few.queries)
    exec(next(block for block in blocks("python") if "Detector" in block), {})


def test_the_page_names_every_column_and_every_format() -> None:
    from anoscan.report import result_files
    from anoscan.report.rows import COLUMNS

    for name in (*COLUMNS, *history.COLUMNS, *result_files.FORMATS):
        assert f"`{name}`" in PAGE
