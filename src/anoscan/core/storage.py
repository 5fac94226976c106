"""Read remote files: whatever fsspec opens, such as ``s3://``, ``gs://``, ``https://``, ``memory://``.

A file is copied here, in pieces, before it is used. Copies that no one uses stay for a second use,
as long as there is room for them.
"""

from __future__ import annotations

import atexit
import errno
import itertools
import os
import posixpath
import re
import tempfile
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from anoscan.core.errors import InputError, UsageError
from anoscan.core.files import temporary_folder
from anoscan.core.urls import scheme_of, shown

T = TypeVar("T")

MEGABYTES = 2048  # that one file may have, unless the environment says otherwise
WAITS = (0.3, 1.5)  # seconds before a second and a third try
THREADS = 16  # that fetch files: they wait for the network most of the time
_PIECE = 2**23  # bytes that are fetched at once
_HINT = "Check the address, the network, and the credentials that its package for fsspec uses."


class RemoteFile(NamedTuple):
    """A remote file: its URL, its size in bytes if known, and what tells its versions apart."""

    url: str
    size: int | None
    version: int | None


class Missing(InputError):
    """There is nothing at a URL."""


class _Final(Exception):
    """A failure that a second try would not mend; its text is the reason."""


def largest() -> int:
    """Return how many bytes one file may have: those of ``$ANOSCAN_FETCH_MB``.

    Raises
    ------
    UsageError
        When that is no positive number.
    """
    text = os.environ.get("ANOSCAN_FETCH_MB", "")
    try:
        number = float(text) if text else float(MEGABYTES)
    except ValueError:
        number = 0.0
    if not 0 < number < 1e9:
        raise UsageError(f"ANOSCAN_FETCH_MB must be a number above 0. Got {text!r}.")
    return int(number * 2**20)


# --- listing ------------------------------------------------------------------------------------


def look(url: str) -> RemoteFile | None:
    """Return a remote file, or None for a folder.

    Of ``http``, what ends with a slash is a folder.

    Raises
    ------
    InputError
        When there is nothing, or the storage cannot be asked.
    """
    if scheme_of(url) in ("http", "https") and url.endswith("/"):
        return None
    info = _asked(url, lambda system, path: system.info(path))
    return None if info.get("type") == "directory" else _file(url, info)


def is_file(url: str) -> bool:
    """Say whether a URL names a file; raise InputError where the storage cannot be asked."""
    try:
        return look(url) is not None
    except Missing:
        return False


def is_folder(url: str) -> bool:
    """Say whether a URL names a folder; raise InputError where the storage cannot be asked."""
    try:
        return look(url) is None
    except Missing:
        return False


def entries(url: str) -> tuple[list[str], list[RemoteFile]]:
    """Return the names of the folders in a remote folder, and its files; none of them is hidden.

    Raises
    ------
    InputError
        When the folder cannot be listed.
    """

    def listed(system: Any, path: str) -> list[dict[str, Any]]:
        system.invalidate_cache(path)  # a program may run for days
        return list(system.ls(path, detail=True))

    folder, web = _path(url), scheme_of(url).startswith("http")
    folders, files = [], []
    for info in _asked(url, listed):
        name = str(info["name"]).rstrip("/")
        last = name.rpartition("/")[2]
        # A store may list the folder itself, and a web page links to elsewhere.
        elsewhere = web and (not name.startswith(f"{folder}/") or "?" in last)
        if name == folder or elsewhere or _hidden(last):
            continue
        if info.get("type") == "directory":
            folders.append(last)
        else:
            files.append(_file(f"{url.rstrip('/')}/{last}", info))
    return sorted(folders), files


def below(url: str) -> Iterator[tuple[str, RemoteFile]]:
    """Yield all files below a remote folder, each with its path inside; one folder after another.

    Raises
    ------
    InputError
        When a folder cannot be listed.
    """
    waiting = deque([""])
    while waiting:
        prefix = waiting.popleft()
        folders, files = entries(f"{url.rstrip('/')}/{prefix}")
        waiting += (f"{prefix}{name}/" for name in folders)
        for file in files:
            yield prefix + posixpath.basename(file.url), file


def matching(pattern: str) -> list[str]:
    """Return the URLs that a pattern with ``*`` matches, sorted.

    Raises
    ------
    InputError
        When the storage cannot be asked.
    """
    root = pattern[: pattern.index("*")].rpartition("/")[0]
    start = len(_path(root).rstrip("/"))
    found = _asked(pattern, lambda system, path: system.glob(path))
    inside = (str(name).rstrip("/")[start:] for name in found)
    return sorted(root + path for path in inside if not any(map(_hidden, path.split("/"))))


def _hidden(name: str) -> bool:
    return name.startswith(".") or name == "__MACOSX"


def _file(url: str, info: dict[str, Any]) -> RemoteFile:
    marks = ("ETag", "etag", "md5Hash", "LastModified", "last_modified", "mtime", "created")
    # A store gives a date as a number in one answer, and as a date in another.
    version = [getattr(mark, "timestamp", lambda m=mark: m)() for mark in map(info.get, marks)]
    size = info.get("size")
    known = any(mark is not None for mark in version)
    return RemoteFile(url, size, hash((url, size, *map(str, version))) if known else None)


# --- local copies -------------------------------------------------------------------------------


@dataclass
class _Copy:
    path: Path
    size: int
    users: int = 0
    ready: bool = False
    lock: threading.Lock = field(default_factory=threading.Lock)


_copies: OrderedDict[tuple[str, int | None], _Copy] = OrderedDict()
_changed = threading.Condition()
_numbers = itertools.count()


@contextmanager
def copied(file: RemoteFile) -> Iterator[Path]:
    """Return a local copy of a remote file, which is there until the context ends.

    Raises
    ------
    InputError
        When it cannot be fetched, or is too large. The message is the bare reason.
    """
    key = (file.url, file.version)
    with _changed:
        copy = _copies.get(key)
        if copy is None:
            # Copies in use may take no more than one file may, however many threads there are.
            _changed.wait_for(lambda: not _in_use() or _in_use() + (file.size or 0) <= largest())
            copy = _copies.setdefault(key, _Copy(_new_place(file.url), file.size or 0))
        copy.users += 1
        _copies.move_to_end(key)
    try:
        with copy.lock:
            if not copy.ready:
                copy.size = _fetch(file, copy.path)
                copy.ready = True
        yield copy.path
    finally:
        with _changed:
            copy.users -= 1
            if not copy.users and (not copy.ready or file.version is None):
                _remove(key)
            for old in [old for old, other in _copies.items() if not other.users]:
                if sum(other.size for other in _copies.values()) <= largest():
                    break
                _remove(old)
            _changed.notify_all()


def kept(url: str) -> Path:
    """Fetch a file, and return its copy, which is there as long as this process.

    Raises
    ------
    InputError
        When it cannot be fetched, or is too large. The message is the bare reason.
    """
    place = _new_place(url)
    _fetch(RemoteFile(url, None, None), place)
    return place


def _in_use() -> int:
    return sum(copy.size for copy in _copies.values() if copy.users)


def _remove(key: tuple[str, int | None]) -> None:
    copy = _copies.pop(key)
    with suppress(OSError):
        copy.path.unlink(missing_ok=True)
        copy.path.parent.rmdir()


def _new_place(url: str) -> Path:
    """Return the path of a new file that has the name of a remote one, in a folder of its own."""
    name = re.sub(r"[^\w.() +-]", "_", url.partition("?")[0].rstrip("/").rpartition("/")[2])
    with _reasons_here():
        folder = _folder(os.getpid()) / str(next(_numbers))
        folder.mkdir()
    return folder / (name[-60:] or "file")


@lru_cache(maxsize=1)
def _folder(process: int) -> Path:
    """Return the folder of the copies of this process, which are removed when it ends."""
    stack = ExitStack()
    folder = stack.enter_context(temporary_folder(Path(tempfile.gettempdir())))
    atexit.register(stack.close)
    return folder


def _fetch(file: RemoteFile, place: Path) -> int:
    """Copy a file in pieces, with a few tries, and return its size in bytes."""
    most = largest()

    def fetched(system: Any, path: str) -> int:
        if (file.size or 0) > most:
            raise _Final(_too_large(most))
        size = 0
        with _reasons_here(), place.open("wb") as sink:
            for piece in _pieces(system, path, file.size):
                size += len(piece)
                if size > most:
                    raise _Final(_too_large(most))
                sink.write(piece)
        return size

    return _tried(file.url, fetched)


def _too_large(most: int) -> str:
    return f"is larger than {most / 2**20:g} MB, which ANOSCAN_FETCH_MB sets"


def _pieces(system: Any, path: str, size: int | None) -> Iterator[bytes]:
    # Errors of the storage are wrapped: they must not pass for those of the local disk.
    try:
        if size is not None and 0 < size <= _PIECE:
            yield system.cat_file(path)  # one request
            return
        with system.open(path, "rb", block_size=_PIECE, cache_type="none") as source:
            while piece := source.read(_PIECE):
                yield piece
    except Exception as error:
        raise _Remote(error) from error


class _Remote(Exception):
    """Holds an error of a storage."""

    def __init__(self, error: Exception) -> None:
        super().__init__()
        self.error = error


@contextmanager
def _reasons_here() -> Iterator[None]:
    """Turn errors of the local disk into reasons that no second try would mend."""
    try:
        yield
    except OSError as error:
        place, reason = tempfile.gettempdir(), os.strerror(error.errno or errno.EIO).lower()
        raise InputError(f"its copy in {place} cannot be written: {reason}") from None


# --- asking a storage ---------------------------------------------------------------------------


def _asked(url: str, work: Callable[[Any, str], T]) -> T:
    """Return what a storage answers; the message of an error names the URL."""
    try:
        return _tried(url, work)
    except InputError as error:
        hint = error.hint or _HINT
        if error.message == _MISSING:
            raise Missing(f"{shown(url)} {_MISSING}.", hint=hint) from None
        raise InputError(f"{shown(url)} cannot be read: {error.message}.", hint=hint) from None


def _tried(url: str, work: Callable[[Any, str], T]) -> T:
    """Call `work` with file system and path, a few times if need be; errors are bare reasons."""
    for wait in (*WAITS, None):
        try:
            return work(*_opened(url))
        except InputError:
            raise
        except _Final as error:
            raise InputError(str(error)) from None
        except Exception as error:
            cause = error.error if isinstance(error, _Remote) else error
            reason, final = _reason(cause)
            if final or wait is None:
                raise InputError(reason) from None
            time.sleep(wait)
    raise AssertionError("the last try returns or raises")


_MISSING = "does not exist"
_FORBIDDEN = "access is not permitted"
_STATUS = {401: _FORBIDDEN, 403: _FORBIDDEN, 404: _MISSING, 410: _MISSING}


def _reason(error: Exception) -> tuple[str, bool]:
    """Say in a few words what went wrong, and whether it will again.

    The text of the error is left out: it may hold an address with a signature.
    """
    name, status = type(error).__name__, getattr(error, "status", None)
    if isinstance(error, FileNotFoundError):
        cause = error.__cause__  # fsspec says of every failure of HTTP that there is no file
        if isinstance(cause, Exception) and not isinstance(cause, FileNotFoundError | KeyError):
            return _reason(cause)
        return _MISSING, True
    if isinstance(error, PermissionError) or "Credential" in name:
        return _FORBIDDEN, True
    if name == "NoSuchBucket":
        return "its bucket does not exist", True
    if isinstance(error, IsADirectoryError):
        return "is a folder", True
    if isinstance(status, int):
        final = 400 <= status < 500 and status not in (408, 425, 429)
        return _STATUS.get(status, f"the server answers with status {status}"), final
    if isinstance(error, NotImplementedError | ValueError | TypeError | ImportError):
        return f"its file system refuses ({name})", True
    number = error.errno if isinstance(error, OSError) else None
    if number in errno.errorcode:
        name = os.strerror(number or 0).lower()
    # s3fs has tried several times before it hands on an error of botocore.
    return f"the storage fails or cannot be reached ({name})", "botocore" in type(error).__module__


def _path(url: str) -> str:
    """Return the path that the file system of a URL has for it."""
    return _asked(url, lambda system, path: path).rstrip("/")


def _opened(url: str) -> tuple[Any, str]:
    """Return the file system of a URL, and the path in it."""
    scheme = scheme_of(url)
    try:
        from fsspec.core import url_to_fs
        from fsspec.registry import known_implementations
    except ImportError:
        raise InputError(
            f"{scheme}:// needs the package fsspec",
            hint="Install it: python -m pip install 'anoscan[remote]'",
        ) from None
    if "::" in url:
        raise InputError("addresses in addresses (::) are not read")
    try:
        system, path = url_to_fs(url)
    except ImportError:
        says = known_implementations.get(scheme, {}).get("err", f"Install what opens {scheme}://")
        raise InputError(f"a package for {scheme}:// is not installed", hint=f"{says}.") from None
    except ValueError:
        raise InputError(f"nothing here opens {scheme}://") from None
    return system, path
