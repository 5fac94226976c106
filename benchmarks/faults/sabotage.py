"""Kill a process at a file operation, refuse it a write, or count what it does.

Python reports every file that is opened, renamed or removed to audit hooks. These see the calls
of all libraries that are written in Python.
"""

from __future__ import annotations

import os
import resource
import signal
import socket
import sys
from collections.abc import Callable
from dataclasses import dataclass
from errno import ENOSPC
from pathlib import Path
from typing import Any

# Operations after which other files are there than before, and the place of their path.
_CHANGES = {
    "os.rename": 1, "os.remove": 0, "os.mkdir": 0, "os.rmdir": 0, "os.truncate": 0, "os.link": 1,
    "os.symlink": 1, "os.utime": 0,
}  # fmt: skip
_NEEDS_ROOM = {"os.mkdir", "os.fsync", "os.link", "os.symlink"}
_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND


@dataclass(frozen=True)
class Sabotage:
    """What happens to a process.

    Parameters
    ----------
    below : str
        Folder; operations on other files do not count.
    kill_at, full_at : int, optional
        Number of the operation, from 0, before which the process is killed, or from which on the
        disk is full.
    only : str, optional
        Event of the only operations that count, such as ``os.rename``.
    log : str, optional
        File that gets a line an operation.
    most_bytes : int, optional
        Size beyond which no file may grow.
    killed_by_size : bool
        Whether the process is killed where a file would grow beyond it, instead of being told.
    """

    below: str = ""
    kill_at: int | None = None
    full_at: int | None = None
    only: str | None = None
    log: str | None = None
    most_bytes: int | None = None
    killed_by_size: bool = False

    def begin(self) -> None:
        """Do all that to this process, but not to those that it starts."""
        if self.most_bytes is not None:
            action = signal.SIG_DFL if self.killed_by_size else signal.SIG_IGN
            signal.signal(signal.SIGXFSZ, action)
            resource.setrlimit(resource.RLIMIT_FSIZE, (self.most_bytes, self.most_bytes))
        if self.below:
            hook = _Hook(self)
            sys.addaudithook(hook)
            os.fsync = hook.before_fsync(os.fsync)  # type: ignore[assignment]


class _Hook:
    """Counts operations below a folder, and acts at one of them."""

    def __init__(self, sabotage: Sabotage) -> None:
        self._sabotage, self._done, self._pid = sabotage, 0, os.getpid()
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND
        self._log = os.open(sabotage.log, flags) if sabotage.log else None

    def __call__(self, event: str, arguments: tuple[Any, ...]) -> None:
        needs_room = event in _NEEDS_ROOM
        if event == "open":
            path, _, flags = arguments
            if not flags & _WRITES:
                return
            needs_room = bool(flags & os.O_CREAT)
        elif event in _CHANGES:
            path = arguments[_CHANGES[event]]
        else:
            return
        if isinstance(path, str | bytes) and self._is_below(os.fsdecode(path), arguments[-1]):
            self._act(event, os.fsdecode(path), needs_room)

    def before_fsync(self, fsync: Callable[[Any], None]) -> Callable[[Any], None]:
        def counted(descriptor: Any) -> None:
            number = descriptor if isinstance(descriptor, int) else descriptor.fileno()
            path = str(Path(f"/proc/self/fd/{number}").readlink())
            if self._is_below(path, None):
                self._act("os.fsync", path, True)
            fsync(descriptor)

        return counted

    def _is_below(self, path: str, folder: object) -> bool:
        # Where whole folders are removed, names are relative to an open folder.
        return path.startswith(self._sabotage.below) or (
            not path.startswith("/") and isinstance(folder, int) and folder > 2
        )

    def _act(self, event: str, path: str, needs_room: bool) -> None:
        if os.getpid() != self._pid or self._sabotage.only not in (None, event):
            return
        number, self._done = self._done, self._done + 1
        if self._log is not None:
            os.write(self._log, f"{event} {path}\n".encode())
        if self._sabotage.kill_at == number:
            os.kill(os.getpid(), signal.SIGKILL)
        full = self._sabotage.full_at
        if full is not None and number >= full and needs_room:
            # As from the system, an error of `os.fsync` names no file.
            named = None if event == "os.fsync" else path
            raise OSError(ENOSPC, os.strerror(ENOSPC), named)


# --- no network ---------------------------------------------------------------------------------


def forbid_network(log: str) -> None:
    """Refuse this process every socket but those within this machine's file system.

    `log` is a file that gets a line each time, because a library may go on after the refusal.
    """
    Path(log).touch()

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if not event.startswith("socket."):
            return
        if event == "socket.__new__" and arguments[1] in (socket.AF_UNIX, -1):
            return
        if event in ("socket.connect", "socket.bind") and isinstance(arguments[1], str | bytes):
            return
        with Path(log).open("a", encoding="utf-8") as stream:
            stream.write(f"{event} {arguments[1:]}\n")
        raise PermissionError(f"the network is forbidden: {event}")

    sys.addaudithook(hook)


def forbidding(folder: Path, log: Path) -> Path:
    """Write a module that forbids the network to every Python with `folder` on its path."""
    folder.mkdir(parents=True, exist_ok=True)
    text = f"from benchmarks.faults.sabotage import forbid_network\nforbid_network({str(log)!r})\n"
    (folder / "sitecustomize.py").write_text(text, encoding="utf-8")
    return folder
