"""Full disks and places that cannot be written: one line that names the file, and no half files."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

import numpy as np
import pytest

from anoscan.core.errors import InputError, ModelError
from anoscan.detector import Detector
from anoscan.model import listing, store
from anoscan.model.training_record import LOSSES, Record
from anoscan.report.map_files import MapFiles
from tests.cli.test_cli import SMALL, Result, Run, _source, run
from tests.conftest import Digits

__all__ = ["run"]  # a fixture

UNFINISHED = ".anoscan-*.tmp"


def refuse(monkeypatch: pytest.MonkeyPatch, where: Callable[[Path], bool], room: int = 0) -> None:
    """Let a disk be full for files at some places, after `room` bytes of each."""
    opened = Path.open

    class Full:
        def __init__(self, stream: Any) -> None:
            self.stream, self.left = stream, room

        def write(self, data: Any) -> int:
            size = len(data) if isinstance(data, str) else memoryview(data).nbytes
            if size > self.left:
                self.stream.write(data[: self.left])
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            self.left -= size
            return int(self.stream.write(data))

        def __getattr__(self, name: str) -> Any:
            return getattr(self.stream, name)

        def __enter__(self) -> Full:
            return self

        def __exit__(self, *failure: object) -> None:
            self.stream.close()

    def full(self: Path, mode: str = "r", *rest: Any, **options: Any) -> Any:
        stream = opened(self, mode, *rest, **options)
        return Full(stream) if where(self) and set(mode) & set("wax") else stream

    monkeypatch.setattr(Path, "open", full)


def check(result: Result, file: Path) -> None:
    assert result.code == 1
    assert f"cannot write {file}: No space left on device." in result.err.splitlines()[-1]
    assert "Traceback" not in result.err


@pytest.mark.parametrize(
    ("options", "name"),
    [
        (["--report", "page.html"], "page.html"),
        (["--residuals", "r"], "r/{}.residual.png"),
        (["--maps", "m", "--maps-format", "npy"], "m/{}.map.npy"),
        (["--maps", "m", "--maps-format", "tiff"], "m/{}.map.tiff"),
        (["--maps", "m", "--maps-format", "overlay"], "m/{}.overlay.png"),
        (["--report", "page.html", "--report-assets"], "page-files/000000-query.webp"),
    ],
)
def test_scoring_onto_a_full_disk_names_the_file_and_keeps_the_old_one(
    options: list[str],
    name: str,
    run: Run,
    model_file: Path,
    few: Digits,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    image = sorted(few.queries.iterdir())[0]
    command = ["score", image, "--model", model_file, "-q", *options]
    assert run(*command).code == 0
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    refuse(monkeypatch, lambda path: tmp_path in Path(path.absolute()).parents, room=20)
    check(run(*command), Path(name.format(image.name)))
    assert {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()} == before


@pytest.mark.parametrize("command", ["sample", "eval"])
def test_pictures_of_other_commands_are_named_too(
    command: str,
    run: Run,
    model_file: Path,
    few: Digits,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    refuse(monkeypatch, lambda path: path.parent == tmp_path, room=20)
    if command == "sample":
        result = run("sample", model_file, "--output", tmp_path, "--n", 4)
        check(result, tmp_path / "samples.png")
    else:
        pytest.importorskip("matplotlib")
        options = ["--labels", few.labels, "--model", model_file, "--plots", tmp_path]
        check(run("eval", *options), tmp_path / "roc.png")
    assert list(tmp_path.iterdir()) == []


def test_a_folder_of_plots_that_goes_away_while_images_are_scored_is_named(
    run: Run, model_file: Path, few: Digits, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("matplotlib")
    evaluate = Detector.evaluate

    def meanwhile(*arguments: Any, **options: Any) -> Any:
        (tmp_path / "plots").touch()
        return evaluate(*arguments, **options)

    monkeypatch.setattr(Detector, "evaluate", meanwhile)
    options = ["--labels", few.labels, "--model", model_file, "--plots", tmp_path / "plots"]
    result = run("eval", *options, "-q")
    assert result.code == 1
    assert result.err.startswith(f"Error: cannot write {tmp_path / 'plots' / 'roc.png'}: ")


def test_models_reports_and_checkpoints_on_a_full_disk(
    run: Run, few: Digits, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        refuse(patch, lambda path: path.parent == store.models_folder(), room=1000)
        check(run("train", few.normal, *SMALL, "--name", "a"), store.path_for("a"))
    with monkeypatch.context() as patch:
        refuse(patch, lambda path: path.parent == store.home() / "checkpoints", room=1000)
        check(run("train", few.normal, *SMALL, "--name", "a"), store.checkpoint_path("a"))
    with monkeypatch.context() as patch:
        refuse(patch, lambda path: path.parent == tmp_path, room=10)
        report = tmp_path / "clean.json"
        result = run("train", few.normal, *SMALL, "--name", "a", "--clean-report", report)
        check(result, report)
    assert [model.problem for model in listing.models()] == [None]
    assert not list(store.home().rglob(UNFINISHED))
    assert not list(tmp_path.iterdir())


def test_a_record_on_a_full_disk_costs_no_training_and_keeps_whole_lines(
    run: Run, few: Digits, monkeypatch: pytest.MonkeyPatch
) -> None:
    refuse(monkeypatch, lambda path: path.name == LOSSES, room=10)
    result = run("train", few.normal, *SMALL, "--name", "a")
    assert result.code == 0
    assert "no more losses and pictures in" in result.err
    record = Record(store.path_for("a"))
    assert (record.folder / LOSSES).read_bytes() == b""


@pytest.mark.parametrize("folder", ["models", "checkpoints"])
def test_a_store_that_cannot_be_written_is_noticed_before_the_training(
    folder: str, run: Run, few: Digits, monkeypatch: pytest.MonkeyPatch
) -> None:
    (store.home() / folder).touch()
    monkeypatch.setattr("anoscan.trainer.learn", None)
    result = run("train", few.normal, *SMALL, "--name", "a", "-q")
    assert result.code == 1
    assert result.err == (
        f"Error: cannot write {store.home() / folder / 'a.safetensors'}: {store.home() / folder} "
        "is no folder. Set ANOSCAN_HOME to a folder of your own that has room.\n"
    )


def test_a_model_that_cannot_be_written_is_noticed_before_it_is_calibrated(
    run: Run, few: Digits, model_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (store.home() / "models").touch()
    monkeypatch.setattr("anoscan.evaluation.recalibrate.renew", None)
    command = ["calibrate", model_file, few.queries, "-q"]
    result = run(*command, "--name", "new")
    assert result.code == 1
    assert f"cannot write {store.path_for('new')}: " in result.err

    def denied(**options: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", str(options["dir"]))

    monkeypatch.setattr("tempfile.TemporaryFile", denied)
    result = run(*command)
    assert result.code == 1
    assert f"cannot write {model_file}: Permission denied." in result.err


def test_moving_models_into_a_store_that_cannot_be_written_is_one_line(
    run: Run, model_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (store.home() / "models").touch()
    result = run("models", "import", model_file)
    assert result.code == 1
    assert result.err.startswith(f"Error: cannot write {store.path_for(model_file.stem)}: ")
    (store.home() / "models").unlink()
    assert run("models", "import", model_file, "--name", "a").code == 0

    def denied(self: Path, target: Path) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", str(self))

    monkeypatch.setattr(Path, "replace", denied)
    result = run("models", "rename", "a", "b")
    assert result.code == 1
    assert result.err == f"Error: cannot rename {store.path_for('a')}: Permission denied.\n"


def test_the_rows_of_a_map_name_the_temporary_folder_and_are_forgotten_after_a_failure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("anoscan.report.map_files.block_side", lambda height, width: height)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    files = MapFiles(tmp_path / "maps", ("npy",))

    class Large:
        height = width = 2

    class Small:
        height = width = 1

    keep = files.spool(Large())  # type: ignore[arg-type]
    assert keep is not None
    keep(0, np.zeros((1, 2), np.float32))  # and then the image is given up
    assert files.spool(Small()) is None  # type: ignore[arg-type]
    assert files._spool is None

    class Full:
        def write(self, data: object) -> int:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        def close(self) -> None:
            pass

    def full(**options: object) -> IO[bytes]:
        return Full()  # type: ignore[return-value]

    monkeypatch.setattr("tempfile.TemporaryFile", full)
    keep = files.spool(Large())  # type: ignore[arg-type]
    assert keep is not None
    with pytest.raises(InputError, match=f"in {tmp_path}: No space left on device"):
        keep(0, np.zeros((1, 2), np.float32))


PROGRAM = """
import resource, signal, sys
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (200, 200))
from anoscan.cli import main
main()
"""


@pytest.mark.slow
def test_a_limit_of_the_system_on_the_size_of_files_is_a_full_disk(
    model_file: Path, few: Digits, tmp_path: Path
) -> None:
    pytest.importorskip("resource")
    command = ["score", str(few.queries), "--model", str(model_file), "-q"]
    for options, name in (
        (["--report", f"{tmp_path}/a.html"], f"temporary file in {tmp_path}"),
        (["--maps", f"{tmp_path}/maps", "--maps-format", "npy"], f"{tmp_path}/maps"),
        (["--maps", f"{tmp_path}/maps", "--maps-format", "tiff"], f"{tmp_path}/maps"),
    ):
        done = subprocess.run(
            [sys.executable, "-c", PROGRAM, *command, *options],
            capture_output=True,
            text=True,
            check=False,
            env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": _source()},
        )
        assert done.returncode == 1
        assert name in done.stderr
        assert done.stderr.count("\n") == 1
        assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_unused_names_are_refused_with_the_models_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ModelError, match="cannot write"):
        store.unused("x", tmp_path / "file" / "x.safetensors", force=False)
