"""Names of models, which every file system accepts as names of files."""

from __future__ import annotations

import glob
import os
import unicodedata
from pathlib import Path

from anoscan.core.errors import UsageError

SUFFIX = ".safetensors"

_LONGEST = 100  # characters
_MOST_BYTES = 200  # in UTF-8; file systems allow 255 for name and suffix together
_PUNCTUATION = frozenset("._- +()")
_DEVICES = frozenset(
    ["CON", "PRN", "AUX", "NUL"]
    + [f"{port}{n}" for port in ("COM", "LPT") for n in "0123456789¹²³"]
)


def check_name(name: str) -> str:
    """Check that every file system accepts a name, and return it in Unicode's composed form (NFC).

    A name has at most 100 characters (200 bytes in UTF-8): letters, marks and digits of any script,
    ``. _ - + ( )`` and inner spaces. It may not start with a dot or a hyphen, end in the suffix of
    model files, or be the name of a Windows device.

    Raises
    ------
    UsageError
        When the name is not allowed; the message names the problem.
    """
    name = unicodedata.normalize("NFC", name)
    if problem := problem_with(name):
        raise UsageError(
            f"{name!r} cannot name a model: {problem}.",
            hint="Use letters, digits, spaces and . _ - + ( ), at most 100 characters.",
        )
    return name


def problem_with(name: str) -> str | None:
    """Return in a few words why a composed name is not allowed; None where it is."""
    if not name:
        return "it is empty"
    if strange := [c for c in name if not _allowed(c)]:
        return f"it holds {strange[0]!r}"
    if len(name) > _LONGEST or len(name.encode()) > _MOST_BYTES:
        return "it is too long"
    if name[0] in ".-":
        return f"it starts with {name[0]!r}"
    if name != name.strip():
        return "it starts or ends with a space"
    if name.lower().endswith(SUFFIX):
        return f"{SUFFIX} is added to names, and cannot end one"
    if name.split(".")[0].strip().upper() in _DEVICES:
        return "Windows keeps it for a device"
    return None


def _allowed(character: str) -> bool:
    # Marks are allowed too, because the vowel signs of many scripts are marks.
    return character in _PUNCTUATION or unicodedata.category(character)[0] in "LMN"


def name_for(folder: Path) -> str:
    """Return a model's name after a resolved folder; ``-`` replaces what is not allowed.

    Of a pattern (`images.globs`), the folder that it starts from is taken.
    """
    parts = folder.parts
    magic = (number for number, part in enumerate(parts) if glob.has_magic(part))
    first = None if os.path.lexists(folder) else next(magic, None)
    return made_of(Path(os.path.realpath(Path(*parts[:first]))).name)


def made_of(text: str) -> str:
    """Return a valid name that is as close to a text as can be."""
    composed = unicodedata.normalize("NFC", text)
    name = "".join(c if _allowed(c) else "-" for c in composed)[:_LONGEST]
    name = name.encode()[:_MOST_BYTES].decode(errors="ignore").strip(" .-")
    while name.lower().endswith(SUFFIX):
        name = name[: -len(SUFFIX)].strip(" .-")
    # Characters may compose in new ways after cutting and stripping, so the result is checked.
    name = unicodedata.normalize("NFC", name)
    if name and problem_with(name):
        name = f"model-{name}"[:_LONGEST]
    return name if not problem_with(name) else "model"
