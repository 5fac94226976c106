"""The images that a command line asks about: files, folders, or a list on stdin."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from anoscan.errors import InputError

if TYPE_CHECKING:
    from anoscan.images import ImageFile


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
    from anoscan import images, labelled

    given, narrowed = labelled.query_paths([path for path in paths if path != "-"])
    notes = [narrowed] if narrowed else []
    for folder in _inside(written, given):
        notes.append(f"not looked into, as pictures are written there: {folder}")
    if "-" not in paths:
        return images.find(given, written), notes
    found: list[ImageFile] = []
    for path in _listed():
        if os.path.isdir(path):  # noqa: PTH112 - Path.is_dir raises for names that are too long
            found += images.find([path], written)
        else:
            # A path that is not there is reported with the unreadable ones: the list goes on.
            found += images.in_file(path, Path(path), path)
    if given:
        found += images.find(given, written)
    if not found:
        raise InputError("the list of images on stdin is empty.")
    return found, notes


def _inside(written: Sequence[Path], paths: Sequence[str]) -> Iterator[Path]:
    """Those folders of `written` that are there, inside a folder of `paths`."""
    roots = {Path(path).resolve() for path in paths}
    for folder in written:
        if os.path.isdir(folder) and roots & set(folder.resolve().parents):  # noqa: PTH112
            yield folder


def _listed() -> list[str]:
    """Paths on stdin; a name that holds a newline needs the form that ``find -print0`` writes."""
    data = sys.stdin.buffer.read()
    if b"\0" in data:
        names = data.split(b"\0")
    else:
        names = [line.removesuffix(b"\r") for line in data.split(b"\n")]
    return [os.fsdecode(name) for name in names if name]
