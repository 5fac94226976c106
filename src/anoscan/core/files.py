"""Files that are written whole or not at all, and file names that are safe to show."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from functools import lru_cache
from pathlib import Path
from typing import Any, BinaryIO

from anoscan.core.errors import AnoscanError, InputError, UsageError
from anoscan.core.urls import shown, url_of

try:
    import fcntl
except ImportError:  # Windows has no such locks
    _flock = None
else:

    def _flock(descriptor: int) -> None:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)


_LOCAL_ONLY = "results are written to this computer only"
_HINT = "Choose a folder that can be written to and has room."
_UNFINISHED = re.compile(r"\.anoscan-[0-9a-f]{16}\.tmp")
_OLD = 24 * 60 * 60  # seconds; where there are no locks, an older unfinished file is left over


@contextmanager
def replacing(
    path: Path, failure: type[AnoscanError] = InputError, *, durable: bool = False
) -> Iterator[BinaryIO]:
    """Open a binary stream whose content becomes the file `path` when the context ends.

    Missing folders are created. After an error there is no new file, and an older one stays. With
    `durable`, which takes a moment, the content survives a loss of power right afterwards.

    Raises
    ------
    AnoscanError
        When the file cannot be written; an instance of `failure`.
    """
    _check_local(path, failure)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with _unfinished(path.parent) as temporary:
            with temporary.open("wb") as stream:
                yield stream
                if durable:
                    stream.flush()
                    os.fsync(stream.fileno())
            temporary.replace(path)
    except OSError as error:
        raise cannot_write(path, error, failure) from error


def _check_local(path: Path, failure: type[AnoscanError]) -> None:
    if (url := url_of(path)) is not None:
        raise failure(f"cannot write {shown(url)}: {_LOCAL_ONLY}.", hint=_HINT)


def append_line(path: Path, values: dict[str, Any]) -> None:
    """Add a line of JSON values to a file; on a full disk no half of it stays.

    Raises
    ------
    OSError
        When the file or its folder cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    size = path.stat().st_size if path.exists() else 0
    try:
        with path.open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(values, allow_nan=False) + "\n")
    except OSError:
        with suppress(OSError):
            os.truncate(path, size)
        raise


@contextmanager
def temporary_folder(beside: Path) -> Iterator[Path]:
    """Make a folder in the folder `beside`, and remove it with its content when the context ends.

    Raises
    ------
    InputError
        When it cannot be made.
    """
    with ExitStack() as stack:
        try:
            beside.mkdir(parents=True, exist_ok=True)
            folder = stack.enter_context(_unfinished(beside, _make_private))
        except OSError as error:
            raise cannot_write(beside, error) from error
        yield folder


def remove_leftovers(folder: Path) -> None:
    """Remove what a process that was killed left unfinished in `folder`, as far as that can be.

    A process locks what it writes, so nothing of a living process is removed. The folder need not
    exist.
    """
    with suppress(OSError), os.scandir(folder) as entries:
        for entry in entries:
            if _UNFINISHED.fullmatch(entry.name):
                with suppress(OSError):
                    _remove_if_left(Path(entry.path))


_remove_leftovers_once = lru_cache(maxsize=4096)(remove_leftovers)  # a folder may hold a million


def _touch(path: Path) -> None:
    path.touch(exist_ok=False)


def _make_private(folder: Path) -> None:
    folder.mkdir(0o700)


@contextmanager
def _unfinished(folder: Path, make: Callable[[Path], None] = _touch) -> Iterator[Path]:
    """Make a file or folder of a new name, locked until the context ends; remove it then."""
    _remove_leftovers_once(folder)
    while True:
        # The name of the final file with a suffix could be too long for the file system.
        temporary = folder / f".anoscan-{os.urandom(8).hex()}.tmp"
        make(temporary)
        try:
            lock = _locked(temporary)
        except (BlockingIOError, FileNotFoundError):  # taken for a leftover before it was locked
            continue
        except OSError:
            with suppress(OSError):
                _remove(temporary)
            raise
        break
    try:
        yield temporary
    finally:
        with suppress(OSError):
            _remove(temporary)
        if lock is not None:
            os.close(lock)


def _locked(path: Path) -> int | None:
    """Lock a file or folder until the descriptor is closed; return None where no locks are.

    Raises
    ------
    BlockingIOError, FileNotFoundError
        When another process holds the lock, or the file is gone.
    """
    if _flock is None:
        return None
    flags = os.O_RDONLY if path.is_dir() else os.O_RDWR
    descriptor = os.open(path, flags | os.O_NOFOLLOW)
    try:
        _flock(descriptor)
        path.lstat()  # another process may have removed it just before
    except (BlockingIOError, FileNotFoundError):
        os.close(descriptor)
        raise
    except OSError:  # a file system without locks
        os.close(descriptor)
        return None
    return descriptor


def _remove_if_left(path: Path) -> None:
    lock = _locked(path)
    if lock is None and time.time() - path.lstat().st_mtime < _OLD:
        return
    try:
        _remove(path)
    finally:
        if lock is not None:
            os.close(lock)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def check_writable(path: Path, option: str, *, folder: bool = False) -> None:
    """Check before a long job that its result can be written; leave nothing behind.

    `path` is the file to write, or with `folder` the folder to write files in. `option` is the name
    of the option that gave it, for the message.

    Raises
    ------
    UsageError
        When the file, or files in the folder, cannot be written.
    """
    if problem := why_unwritable(path, folder=folder):
        name = shown(url_of(path) or str(path))
        raise UsageError(f"{option} {name} cannot be written: {problem}.", hint=_HINT)


def why_unwritable(path: Path, *, folder: bool = False) -> str | None:
    """Return why the file `path`, or files in that `folder`, cannot be written; None if they can.

    Nothing is left behind.
    """
    if url_of(path) is not None:
        return _LOCAL_ONLY
    place = path if folder else path.parent
    made = [part for part in (place, *place.parents) if not os.path.lexists(part)]
    try:
        if path.is_dir() and not folder:
            raise IsADirectoryError(errno.EISDIR, "it is a folder")
        place.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=place):
            pass
    except OSError as error:
        return reason_of(error)
    finally:
        for part in made:
            with suppress(OSError):
                part.rmdir()
    return None


def cannot_write(
    path: Path | str, error: OSError, failure: type[AnoscanError] = InputError
) -> AnoscanError:
    """Make the error that says why the system did not let `path` be written."""
    return failure(f"cannot write {path}: {reason_of(error)}.", hint=_HINT)


def reason_of(error: OSError) -> str:
    """Return in a few words why the system refused."""
    if isinstance(error, FileExistsError):  # mkdir accepts an existing folder: this is a file
        return f"{error.filename} is no folder"
    return error.strerror or str(error)


_FORMULA_STARTS = ("=", "+", "-", "@", "\t", "\r", "\n")


def encodable(name: str) -> str:
    r"""Return a file name in which bytes that are not UTF-8 are written like ``\xff``."""
    return "".join(f"\\x{ord(c) - 0xDC00:02x}" if "\udc80" <= c <= "\udcff" else c for c in name)


def printable(name: str) -> str:
    """Return a file name with control characters and broken Unicode escaped, for a terminal."""
    return "".join(
        c if c.isprintable() else c.encode("unicode_escape").decode() for c in encodable(name)
    )


def defused(cell: str) -> str:
    """Return a CSV cell that no spreadsheet runs as a formula."""
    return f"'{cell}" if cell.startswith(_FORMULA_STARTS) else cell
