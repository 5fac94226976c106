"""Files are written whole or not at all, and what a killed process left is cleared away."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from anoscan.core.errors import InputError, UsageError
from anoscan.core.files import (
    check_writable,
    remove_leftovers,
    replacing,
    temporary_folder,
    why_unwritable,
)

POSIX = os.name == "posix"


def write_and_wait(place: Path, what: str) -> subprocess.Popen[str]:
    """A process that has begun to write in a folder, and says so on stdout."""
    program = (
        "import sys, time\n"
        "from pathlib import Path\n"
        "from anoscan.core.files import replacing, temporary_folder\n"
        f"with {what} as made:\n"
        "    print('begun', flush=True)\n"
        "    time.sleep(300)\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", program], cwd=place, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "begun\n"
    return process


@pytest.mark.skipif(not POSIX, reason="Windows has no locks: there, only old files are left over")
@pytest.mark.parametrize(
    "what", ["replacing(Path('model.safetensors'))", "temporary_folder(Path('.'))"]
)
def test_what_a_killed_process_left_is_removed_and_what_a_living_one_writes_is_not(
    what: str, tmp_path: Path
) -> None:
    (tmp_path / ".anoscan-of-somebody-else.tmp").touch()
    process = write_and_wait(tmp_path, what)
    try:
        remove_leftovers(tmp_path)
        assert len(list(tmp_path.iterdir())) == 2
    finally:
        process.kill()
        process.communicate()
    assert len(list(tmp_path.iterdir())) == 2
    remove_leftovers(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [".anoscan-of-somebody-else.tmp"]


@pytest.mark.skipif(not POSIX, reason="Windows has no locks: there, only old files are left over")
def test_the_next_file_in_a_folder_clears_leftovers_away(tmp_path: Path) -> None:
    process = write_and_wait(tmp_path, "replacing(Path('a'))")
    process.kill()
    process.communicate()
    with replacing(tmp_path / "b") as stream:
        stream.write(b"whole")
    assert [path.name for path in tmp_path.iterdir()] == ["b"]
    assert (tmp_path / "b").read_bytes() == b"whole"


def test_an_error_leaves_the_older_file_and_nothing_else(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_bytes(b"old")
    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    with pytest.raises(InputError, match=f"cannot write {file}: No space left"), replacing(file):
        raise full
    with pytest.raises(KeyboardInterrupt), replacing(file):
        raise KeyboardInterrupt
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
    assert file.read_bytes() == b"old"


def test_new_files_have_the_permissions_that_other_programs_would_give(tmp_path: Path) -> None:
    with replacing(tmp_path / "ours") as stream:
        stream.write(b"")
    (tmp_path / "theirs").write_bytes(b"")
    assert (tmp_path / "ours").stat().st_mode == (tmp_path / "theirs").stat().st_mode


def test_a_temporary_folder_goes_with_its_content(tmp_path: Path) -> None:
    with temporary_folder(tmp_path / "new") as folder:
        (folder / "file").touch()
        assert folder.parent == tmp_path / "new"
    assert list((tmp_path / "new").iterdir()) == []
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="is no folder"), temporary_folder(tmp_path / "file"):
        pass


def test_checking_whether_a_place_can_be_written_leaves_nothing_behind(tmp_path: Path) -> None:
    assert why_unwritable(tmp_path / "a" / "b" / "file") is None
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "file").touch()
    assert "is no folder" in str(why_unwritable(tmp_path / "file" / "below"))
    assert why_unwritable(tmp_path) == "it is a folder"
    with pytest.raises(UsageError, match=r"--plots .* cannot be written"):
        check_writable(tmp_path / "file", "--plots", folder=True)


def test_a_file_that_cannot_be_locked_is_not_left_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(path: Path) -> None:
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr("anoscan.core.files._locked", refused)
    with pytest.raises((OSError, InputError)), replacing(tmp_path / "x.csv"):
        pytest.fail("is written without a lock")
    assert not list(tmp_path.iterdir())
