"""Standard streams that may be closed, full or without a reader."""

from __future__ import annotations

import errno
import io
import os
import sys
from contextlib import suppress
from typing import Any, TextIO

STDOUT = "stdout"


class _Results(io.FileIO):
    """Standard output, whose errors have its name."""

    def write(self, data: Any, /) -> int:
        try:
            return super().write(data)
        except OSError as error:
            error.filename = STDOUT
            raise


class _Messages(io.FileIO):
    """Standard error: a message that nobody can read is no reason to end a job."""

    def write(self, data: Any, /) -> int:
        try:
            return super().write(data)
        except OSError:
            return memoryview(data).nbytes


def prepare() -> None:
    """Make `sys.stdin`, `sys.stdout` and `sys.stderr` usable, whatever the caller closed.

    Reading from a closed stdin, and writing to a closed stdout, raises OSError. What is written to
    stderr gets lost where it is closed, full or without a reader.
    """
    # The null device takes the lowest free descriptors: those that were closed. Otherwise the next
    # file that is opened would take their place, and what is printed would end in that file. It is
    # opened the wrong way round, so that reading and writing fail.
    if sys.stdin is None:
        sys.stdin = io.TextIOWrapper(io.BufferedReader(_null(os.O_WRONLY, "r")))
    if sys.stdout is None:
        sys.stdout = io.TextIOWrapper(io.BufferedWriter(_null(os.O_RDONLY, "w")))
    if sys.stderr is None:
        sys.stderr = io.TextIOWrapper(io.BufferedWriter(_null(os.O_WRONLY, "w")))
    # Python callers may have put other streams there, which are their own concern.
    if sys.stdout is sys.__stdout__ or sys.__stdout__ is None:
        sys.stdout = _kept(sys.stdout, _Results)
    if sys.stderr is sys.__stderr__ or sys.__stderr__ is None:
        sys.stderr = _kept(sys.stderr, _Messages)


def _null(flags: int, mode: str) -> io.FileIO:
    descriptor = os.open(os.devnull, flags)
    os.set_inheritable(descriptor, True)  # what holds for this process holds for its children
    return io.FileIO(descriptor, mode, closefd=False)


def _kept(stream: TextIO, kind: type[io.FileIO]) -> TextIO:
    """Return a stream that is written by `kind` and escapes what the encoding lacks."""
    if not isinstance(stream, io.TextIOWrapper):
        return stream
    stream.reconfigure(errors="backslashreplace")
    # With PYTHONUNBUFFERED the buffer is itself the raw file. In a Windows console, and in tests,
    # the raw file is of another kind, and stays.
    if type(getattr(stream.buffer, "raw", stream.buffer)) is not io.FileIO:
        return stream
    buffer = io.BufferedWriter(kind(stream.fileno(), "wb", closefd=False))
    lines = stream.line_buffering or kind is _Messages
    return io.TextIOWrapper(buffer, stream.encoding, "backslashreplace", line_buffering=lines)


def flush_stdout() -> OSError | None:
    """Write what waits for stdout; return the error if that fails, and drop the rest then."""
    try:
        sys.stdout.flush()
    except OSError as error:
        # Python flushes again at its exit, and would print a traceback there.
        with suppress(OSError, ValueError):
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, sys.stdout.fileno())
            os.close(null)
        return error
    return None


def reason(error: OSError) -> str:
    """Return in a few words why a standard stream cannot be used."""
    return "it is closed" if error.errno == errno.EBADF else error.strerror or str(error)
