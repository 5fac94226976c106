"""Files that kill, hang or exhaust their decoder cost one file; all others are read, in order."""

from __future__ import annotations

import itertools
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from anoscan.core.errors import InputError, UsageError
from anoscan.images import pool
from anoscan.images.decode import Decoded, ImageRule, decode, decode_all
from anoscan.images.files import ImageFile, find
from anoscan.images.pool import Failed, is_plain, read_all, read_one


def files(*names: str) -> list[ImageFile]:
    return [ImageFile(name, Path(name), name) for name in names]


def perform(image: ImageFile) -> object:
    """Do what the name of a file says; called in a process of the pool."""
    if image.path == "die":
        os.kill(os.getpid(), signal.SIGSEGV)
    if image.path == "hang":
        time.sleep(600)
    if image.path == "grow":
        return np.ones(2**30, np.uint8).nbytes
    if image.path == "large":
        return np.arange(2**18)
    if image.path == "noise":
        os.write(2, b"a library complains")
    if image.path == "damaged":
        raise InputError("damaged image")
    return image.path


@pytest.fixture
def _limited(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("ANOSCAN_DECODE_SECONDS", "3")
    monkeypatch.setenv("ANOSCAN_DECODE_MB", "512")
    yield
    pool.stop()


@pytest.mark.usefixtures("_limited")
def test_each_bad_file_is_named_with_its_reason_and_all_others_are_read(
    capfd: pytest.CaptureFixture[str],
) -> None:
    names = ["a", "die", "b", "hang", "grow", "large", "noise", "damaged", "c"]
    found = [(image.path, outcome) for image, outcome in read_all(perform, files(*names), 2)]
    assert [path for path, _ in found] == names
    outcomes = dict(found)
    assert outcomes["die"] == Failed("damaged image: it ends its decoder (exit code -11)")
    assert outcomes["hang"] == Failed("cannot be decoded within 3 seconds")
    assert outcomes["grow"] == Failed("needs more than 512 MB of memory to be decoded")
    assert outcomes["damaged"] == Failed("damaged image")
    np.testing.assert_array_equal(outcomes["large"], np.arange(2**18))
    assert [outcomes[name] for name in ("a", "b", "c", "noise")] == ["a", "b", "c", "noise"]
    assert capfd.readouterr().err == ""
    assert not list(Path("/dev/shm").glob("psm_*")), "shared memory is let go"


def test_what_needs_more_than_its_share_is_read_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ANOSCAN_DECODE_MB", "1500")
    (found,) = [outcome for _, outcome in read_all(perform, files("grow"), 8)]
    pool.stop()
    assert found == 2**30


@pytest.mark.parametrize("room", [True, False])
def test_large_results_arrive_whether_or_not_shared_memory_has_room(
    room: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pool, "_has_room", lambda size: room)
    results = [np.arange(2**18), "a", np.ones((2**10, 2**10), np.uint8)[::2], np.float32(3)]
    packed = pool._Packed.of(results)
    assert (packed.shared is not None) == room
    for one, other in zip(results, packed.opened(), strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("text", ["no", "0", "-1", "nan", "inf"])
def test_limits_that_are_no_numbers_are_wrong_usage(
    text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ANOSCAN_DECODE_SECONDS", text)
    with pytest.raises(UsageError, match="ANOSCAN_DECODE_SECONDS"):
        read_one(perform, files("a")[0])


def test_endless_files_are_read_only_a_little_ahead() -> None:
    taken = itertools.count()
    endless = (files(str(number))[0] for number in taken)
    found = [outcome for _, outcome in itertools.islice(read_all(perform, endless, 2), 20)]
    assert found == [str(number) for number in range(20)]
    assert next(taken) < 60


@pytest.fixture(scope="module")
def pngs(tmp_path_factory: pytest.TempPathFactory) -> list[ImageFile]:
    folder = tmp_path_factory.mktemp("pngs")
    rng = np.random.default_rng(0)
    for number in range(40):
        pixels = rng.integers(0, 256, (20, 30, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number:02}.png")
    return [ImageFile(file.name, file, file.name) for file in sorted(folder.iterdir())]


@pytest.mark.parametrize("workers", [1, 3])
def test_processes_and_threads_decode_alike(
    pngs: list[ImageFile], workers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    rule = ImageRule(size=16, channels=3, window=None)
    alone = [decode(image, rule) for image in pngs]
    for worth in (0.0, 1e9):  # processes, then threads
        monkeypatch.setattr(pool, "_WORTH", worth)
        found = list(decode_all(pngs, rule, workers=workers))
        for one, other in zip(alone, found, strict=True):
            np.testing.assert_array_equal(one.pixels, other.pixels)  # type: ignore[union-attr]
            assert one.digest == other.digest  # type: ignore[union-attr]
            assert one.look == other.look  # type: ignore[union-attr]


def test_only_small_shallow_pngs_and_jpegs_are_read_in_this_process(tmp_path: Path) -> None:
    grey = Image.new("L", (8, 8), 7)
    for name in ("a.png", "a.jpg", "a.gif", "a.webp", "a.bmp", "a.tif"):
        grey.save(tmp_path / name)
    Image.fromarray(np.ones((8, 8), np.uint16)).save(tmp_path / "deep.png")
    header = bytearray((tmp_path / "a.png").read_bytes())
    header[16:24] = (13_300).to_bytes(4) * 2
    (tmp_path / "vast.png").write_bytes(header)
    (tmp_path / "short.png").write_bytes(header[:20])
    plain = {
        file.name for file in tmp_path.iterdir() if is_plain(ImageFile(file.name, file, file.name))
    }
    assert plain == {"a.png", "a.jpg"}


def test_a_script_without_a_guard_is_not_run_again_by_its_processes(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.ones((8, 8), np.uint16))
    script = tmp_path / "script.py"
    script.write_text(
        "import sys\n"
        "from pathlib import Path\n"
        "from anoscan.images.decode import ImageRule, decode_all\n"
        "from anoscan.images.files import find\n"
        "print('run')\n"
        "rule = ImageRule(size=16, channels=1, window=None)\n"
        "print([type(x).__name__ for x in decode_all(find([sys.argv[1]]), rule, workers=1)])\n"
    )
    done = subprocess.run(
        [sys.executable, script, tmp_path / "a.npy"],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert done.stdout.splitlines() == ["run", "['Decoded']"], done.stderr


def test_processes_end_with_the_one_that_started_them(tmp_path: Path) -> None:
    program = (
        "import os, sys, signal\n"
        "from tests.images.test_pool import files, perform\n"
        "from anoscan.images import pool\n"
        "list(pool.read_all(perform, files('a'), 1))\n"
        "children = open(f'/proc/self/task/{os.getpid()}/children').read().split()\n"
        "print(*children, flush=True)\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
    )
    children = [Path("/proc") / child for child in done.stdout.split()]
    assert children
    for _ in range(100):
        if not any(child.exists() for child in children):
            return
        time.sleep(0.1)
    pytest.fail("processes are left behind")


@pytest.mark.parametrize("daemon", [False, True])
def test_a_process_of_multiprocessing_reads_and_ends(tmp_path: Path, daemon: bool) -> None:
    for number in range(3):
        Image.new("L", (16, 16)).save(tmp_path / f"{number}.tif", compression="tiff_lzw")
    context = multiprocessing.get_context("spawn")
    process = context.Process(target=_read_all_of, args=(tmp_path,), daemon=daemon)
    process.start()
    process.join(60)
    ended = process.exitcode
    process.kill()
    assert ended == 0


def _read_all_of(folder: Path) -> None:
    rule = ImageRule(size=16, channels=1, window=None)
    assert all(isinstance(one, Decoded) for one in decode_all(find([folder]), rule, workers=2))
