"""What a watch needs: files that are complete, a memory of what was done, and a command to run.

The memory is a file of JSON lines that is only appended to, so that a kill at any moment loses
nothing that was written before.
"""

from __future__ import annotations

import hashlib
import json
import os
import shlex
import signal
import subprocess
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from filelock import FileLock, Timeout

from anoscan.core.errors import AnoscanError, InputError, UsageError
from anoscan.core.files import cannot_write, reason_of
from anoscan.images import formats
from anoscan.images.files import images_below

SCHEMA = "anoscan.watch-state/1"
SCORED, SKIPPED, PASSED = "scored", "skipped", "passed"  # what was done with an image
_HEAD = b'{"schema": "anoscan.watch-state/'  # begins the file
_GLANCE = 0.3  # seconds for which even an old file must stay the same
_HIDDEN = (".", "__MACOSX")  # how names of files and folders begin that are passed over


class Version(NamedTuple):
    """The size in bytes of a file and its time of change, which differ when its content does."""

    size: int
    mtime_ns: int


@dataclass(frozen=True)
class Arrived:
    """A file that is complete: its path inside the folder, '/'-separated, and its version."""

    inside: str
    version: Version


class Arrivals:
    """Finds the files of a folder that are complete, each version of a file once.

    A file is complete when it has not changed for `settle` seconds. A file that was moved in did
    its changing elsewhere, so its time of change tells the same. Empty files are never complete.
    `clock` returns seconds since 1970, as times of files do.
    """

    def __init__(self, folder: Path, settle: float, clock: Callable[[], float] = time.time) -> None:
        self._folder, self._settle, self._clock = folder, settle, clock
        self._waiting: dict[str, tuple[Version, float]] = {}
        self._done: dict[str, Version] = {}

    def note(self, paths: Iterable[str | Path]) -> bool:
        """Take note of changed paths; return whether a folder is among them, which needs a scan."""
        folders = False
        for path in map(Path, paths):
            try:
                inside = path.relative_to(self._folder).as_posix()
            except ValueError:
                continue
            if any(part.startswith(_HIDDEN) for part in inside.split("/")):
                continue
            if os.path.isdir(path):  # noqa: PTH112 - Path.is_dir raises for names too long
                folders = True
            elif formats.is_named_like_one(path):
                self._look(inside)
        return folders

    def scan(self) -> None:
        """Take note of all images in the folder: events get lost, and some systems have none.

        Raises
        ------
        InputError
            When a folder cannot be listed.
        """
        for inside in images_below(self._folder):
            self._look(inside)

    def complete(self) -> list[Arrived]:
        """Return the files that have become complete, the oldest first."""
        found = []
        for inside in list(self._waiting):
            self._look(inside)
            if inside not in self._waiting:
                continue
            version, since = self._waiting[inside]
            now = self._clock()
            old = now - version.mtime_ns / 1e9 >= self._settle
            if now - since >= (min(_GLANCE, self._settle) if old else self._settle):
                del self._waiting[inside]
                self._done[inside] = version
                found.append(Arrived(inside, version))
        return sorted(found, key=lambda file: (file.version.mtime_ns, file.inside))

    @property
    def waiting(self) -> int:
        """Number of files that are not complete yet."""
        return len(self._waiting)

    def _look(self, inside: str) -> None:
        version = version_of(self._folder / inside)
        if version is None or not version.size or self._done.get(inside) == version:
            self._waiting.pop(inside, None)
        elif inside not in self._waiting or self._waiting[inside][0] != version:
            self._waiting[inside] = (version, self._clock())


def version_of(file: Path) -> Version | None:
    """Return the version of a file, or None where there is no such file."""
    try:
        status = file.stat()
    except (OSError, ValueError):
        return None
    return Version(status.st_size, status.st_mtime_ns)


class Memory:
    """What a watch has done with each image, kept in a file that survives kills.

    A line is on the disk before `add` returns. A line that a kill cut off is passed over. No other
    process can use the same file meanwhile.

    Parameters
    ----------
    file : Path
    folder : Path
        Folder that is watched.
    model : str
        SHA-256 of the model file.

    Attributes
    ----------
    new : bool
        Whether there was no such file before.
    other_model : bool
        Whether another model wrote the last lines.

    Raises
    ------
    AnoscanError
        When another watch uses the file, it is of another folder, or it cannot be used.
    """

    def __init__(self, file: Path, folder: Path, model: str) -> None:
        self._file, self._lock = file, FileLock(f"{file}.lock")
        self._known: dict[str, Version] = {}
        self._alarms: dict[str, dict[str, Any]] = {}
        real = os.path.realpath(folder)
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            self._lock.acquire(timeout=0)
        except Timeout:
            raise AnoscanError(
                f"another watch uses {file}.", hint="Stop it, or give another --state FILE."
            ) from None
        except NotImplementedError:
            pass  # a file system without locks cannot keep other processes out
        except OSError as error:
            raise cannot_write(file, error) from error
        try:
            head, torn = self._read(real)
            self.new, self.other_model = head is None, head not in (None, model)
            self._stream = file.open("ab", buffering=0)
            if torn:
                self._write(b"\n")
        except OSError as error:
            self._lock.release()
            raise InputError(f"--state {file}: {reason_of(error)}.") from error
        except AnoscanError:
            self._lock.release()
            raise
        if head != model:
            self._append({"schema": SCHEMA, "folder": real, "model": model})

    def __contains__(self, image: tuple[str, Version]) -> bool:
        """Whether this version of an image, by its path inside the folder, was done."""
        inside, version = image
        return self._known.get(inside) == version

    def add(
        self, inside: str, version: Version, was: str, alarm: dict[str, Any] | None = None
    ) -> None:
        """Keep what was done with an image, and with `alarm` that a command has to be run.

        Raises
        ------
        InputError
            When the file cannot be written.
        """
        self._known[inside] = version
        line = _line(inside, version, was)
        if alarm is not None:
            self._alarms[inside] = alarm
            line["alarm"] = alarm
        self._append(line)

    def pass_by(self, images: Mapping[str, Version]) -> None:
        """Keep that images are not to be scored; raise InputError where that fails."""
        self._known |= images
        lines = (_line(inside, version, PASSED) for inside, version in images.items())
        self._write(b"".join(map(_json, lines)))

    def handled(self, inside: str) -> None:
        """Keep that the command of an alarm was run; raise InputError where that fails."""
        del self._alarms[inside]
        self._append({"handled": inside})

    @property
    def alarms(self) -> tuple[tuple[str, dict[str, Any]], ...]:
        """Images whose alarm has not been handled, and their results."""
        return tuple(self._alarms.items())

    def close(self) -> None:
        """Let the file go."""
        self._stream.close()
        self._lock.release()

    def _read(self, folder: str) -> tuple[str | None, bool]:
        """Read all lines; return the model of the last header, and whether the end is cut off."""
        model = None
        data = self._file.read_bytes() if self._file.exists() else b""
        for line in data.split(b"\n"):
            entry = _entry(line)
            if "schema" in entry:
                if entry["schema"] != SCHEMA or entry.get("folder") != folder:
                    raise InputError(
                        f"--state {self._file} is of another folder, or of another version.",
                        hint="Give another file, or remove that one.",
                    )
                model = str(entry.get("model"))
            elif "handled" in entry:
                self._alarms.pop(str(entry["handled"]), None)
            elif "image" in entry:
                inside = str(entry["image"])
                with suppress(KeyError, TypeError, ValueError):
                    self._known[inside] = Version(int(entry["size"]), int(entry["mtime_ns"]))
                if isinstance(entry.get("alarm"), dict):
                    self._alarms[inside] = entry["alarm"]
        begun = b"\n" not in data and _HEAD.startswith(data[: len(_HEAD)])
        if model is None and not begun:
            raise InputError(
                f"--state {self._file} is no file of anoscan watch.", hint="Give another file."
            )
        return model, bool(data) and not data.endswith(b"\n")

    def _append(self, entry: dict[str, Any]) -> None:
        self._write(_json(entry))

    def _write(self, data: bytes) -> None:
        try:
            while data:
                data = data[self._stream.write(data) :]
            os.fsync(self._stream.fileno())
        except OSError as error:
            raise cannot_write(self._file, error) from error


def _line(inside: str, version: Version, was: str) -> dict[str, Any]:
    return {"image": inside, **version._asdict(), "was": was}


def _json(entry: dict[str, Any]) -> bytes:
    return json.dumps(entry).encode("ascii") + b"\n"


def _entry(line: bytes) -> dict[str, Any]:
    try:
        found = json.loads(line)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


@dataclass(frozen=True)
class Command:
    """A command that is run without a shell, for at most so many seconds."""

    words: tuple[str, ...]
    seconds: float

    @classmethod
    def of(cls, text: str, seconds: float) -> Command:
        """Split a command line as a shell would.

        Raises
        ------
        UsageError
            When it cannot be split, or is empty.
        """
        try:
            words = tuple(shlex.split(text))
        except ValueError as error:
            raise UsageError(f"--exec {text!r} cannot be split: {error}.") from None
        if not words:
            raise UsageError("--exec needs a command.")
        return cls(words, seconds)

    def run(self, result: dict[str, Any]) -> str | None:
        """Run it with a result as JSON on stdin; return in words what failed, or None.

        What it prints goes to stderr: on stdout it would mix with results.
        """
        own: dict[str, Any] = {"start_new_session": True} if os.name == "posix" else {}
        try:
            process = subprocess.Popen(self.words, stdin=subprocess.PIPE, stdout=2, **own)
        except (OSError, ValueError) as error:
            return f"cannot be run: {reason_of(error) if isinstance(error, OSError) else error}"
        try:
            process.communicate(_json(result), self.seconds)
        except subprocess.TimeoutExpired:
            return f"did not end within {self.seconds:g} seconds"
        except OSError as error:
            return f"did not take its input: {reason_of(error)}"
        finally:
            if process.poll() is None:
                _kill(process)
        return f"ended with exit code {process.returncode}" if process.returncode else None


def _kill(process: subprocess.Popen[bytes]) -> None:
    """End a process, and on POSIX those that it started."""
    with suppress(OSError):
        if os.name == "posix":
            os.killpg(process.pid, signal.SIGKILL)
        else:
            process.kill()
    process.wait()


def default_state(home: Path, folder: Path, model: str, digest: str) -> Path:
    """Return the file of the memory of a model (its name and SHA-256) about a folder."""
    key = hashlib.sha256(f"{os.path.realpath(folder)}\n{digest}".encode("utf-8", "replace"))
    return home / "watch" / f"{model[:60]}-{key.hexdigest()[:16]}.jsonl"
