"""Files written whole or not at all, and file names made safe to show."""

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
    """Stream whose content becomes the file `path` at the end, or leaves no trace on an error.

    Missing folders are made.

    Parameters
    ----------
    path : Path
    failure : type
        What to raise when the system refuses the write.
    durable : bool
        Whether the file must outlast a loss of power right afterwards, which takes a moment.
    """
    # Not the name of the file: with a suffix it could become too long for the file system.
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
    """Refuse a file that could not be written, before the long job that it is the result of.

    Or a folder, in which files could not be. Nothing is left behind: a job that fails has no
    empty folder to show.

    Raises
    ------
    UsageError
        Which names the option.
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
    if isinstance(error, FileExistsError):  # by mkdir, which was told that a folder may be there
        return f"{error.filename} is no folder"
    return error.strerror or str(error)


_FORMULA_STARTS = ("=", "+", "-", "@", "\t", "\r", "\n")


def encodable(name: str) -> str:
    r"""File name with bytes that are not UTF-8 written as ``\xff``."""
    return "".join(f"\\x{ord(c) - 0xDC00:02x}" if "\udc80" <= c <= "\udcff" else c for c in name)


def printable(name: str) -> str:
    """File name without control characters or broken Unicode: shown, never obeyed."""
    return "".join(
        c if c.isprintable() else c.encode("unicode_escape").decode() for c in encodable(name)
    )


def defused(cell: str) -> str:
    """CSV cell that no spreadsheet runs as a formula."""
    return f"'{cell}" if cell.startswith(_FORMULA_STARTS) else cell
