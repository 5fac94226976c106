"""The images that a command line asks about: files, folders, or a list on stdin."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from anoscan.core.errors import InputError

if TYPE_CHECKING:
    from anoscan.images.files import ImageFile


def gather(paths: Sequence[str], written: Sequence[Path] = ()) -> tuple[list[ImageFile], list[str]]:
    """Images of the arguments; ``-`` stands for the list on stdin.

    Of a folder laid out like MVTec AD only ``test`` counts: its training images look tamer than
    any other, and its masks are no images.

    Parameters
    ----------
    paths : sequence of str
        Files, folders and ``-``.
    written : sequence of path
        Folders that the same command writes pictures to: not looked into where they are inside
        a folder of `paths`.

    Returns
    -------
    images : list of ImageFile
    notes : list of str
        What a user should know of the choice.

    Raises
    ------
    InputError
        When there is no image, or a folder cannot be read.
    """
    from anoscan.images.files import find, in_file
    from anoscan.images.layout import query_paths

    listed, narrowed = query_paths(_listed() if "-" in paths else [])
    given, also = query_paths([path for path in paths if path != "-"])
    notes = [note for note in (narrowed, also, *_notes(written, [*listed, *given])) if note]
    if "-" not in paths:
        return find(given, written), notes
    found: list[ImageFile] = []
    for path in listed:
        if os.path.isdir(path):  # noqa: PTH112 - Path.is_dir raises for names that are too long
            found += find([path], written)
        else:
            # A path that is not there is reported with the unreadable ones: the list goes on.
            found += in_file(path, Path(path), path)
    if given:
        found += find(given, written)
    if not found:
        raise InputError("the list of images on stdin is empty.")
    return found, notes


def _notes(written: Sequence[Path], paths: Sequence[str]) -> Iterator[str]:
    """What follows for folders of `written` that are a folder of `paths`, or inside one."""
    roots = {Path(os.path.realpath(path)) for path in paths} if written else set()
    for folder in written:
        real = Path(os.path.realpath(folder))
        if real in roots:
            yield f"pictures are written among the queries, where a later run ranks them: {folder}"
        elif os.path.isdir(real) and roots & set(real.parents):  # noqa: PTH112
            yield f"not looked into, as pictures are written there: {folder}"


def _listed() -> list[str]:
    """Paths on stdin; a name that holds a newline needs the form that ``find -print0`` writes."""
    data = sys.stdin.buffer.read()
    if b"\0" in data:
        names = data.split(b"\0")
    else:
        names = [line.removesuffix(b"\r") for line in data.split(b"\n")]
    return [os.fsdecode(name) for name in names if name]
