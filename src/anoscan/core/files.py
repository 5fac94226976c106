"""Files that are written whole or not at all, and file names that are safe to show."""

from __future__ import annotations

import errno
import os
import secrets
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from anoscan.core.errors import AnoscanError, InputError, UsageError

_HINT = "Choose a folder that can be written to and has room."


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
    # The name of the file with a suffix could be too long for the file system.
    temporary = path.parent / f".anoscan-{secrets.token_hex(8)}.tmp"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("xb") as stream:
            yield stream
            if durable:
                stream.flush()
                os.fsync(stream.fileno())
        temporary.replace(path)
    except OSError as error:
        raise failure(f"cannot write {path}: {_reason(error)}.", hint=_HINT) from error
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def check_writable(path: Path, option: str, *, folder: bool = False) -> None:
    """Check before a long job that its result can be written; leave nothing behind.

    `path` is the file to write, or with `folder` the folder to write files in. `option` is the name
    of the option that gave it, for the message.

    Raises
    ------
    UsageError
        When the file, or files in the folder, cannot be written.
    """
    place = path if folder else path.parent
    made = [part for part in (place, *place.parents) if not os.path.lexists(part)]
    try:
        if path.is_dir() and not folder:
            raise IsADirectoryError(errno.EISDIR, "it is a folder")
        place.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=place):
            pass
    except OSError as error:
        reason = _reason(error)
        raise UsageError(f"{option} {path} cannot be written: {reason}.", hint=_HINT) from None
    for part in made:
        with suppress(OSError):
            part.rmdir()


def _reason(error: OSError) -> str:
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
