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


def named(paths: Sequence[str], written: Sequence[Path] = ()) -> list[ImageFile]:
    """Images of the arguments; ``-`` stands for the list on stdin.

    Parameters
    ----------
    paths : sequence of str
        Files, folders and ``-``.
    written : sequence of path
        Folders that the same command writes pictures to: not looked into where they are inside
        a folder of `paths`.

    Raises
    ------
    InputError
        When there is no image, or a folder cannot be read.
    """
    from anoscan import images

    if "-" not in paths:
        return images.find(paths, written)
    found: list[ImageFile] = []
    for path in _listed():
        if os.path.isdir(path):  # noqa: PTH112 - Path.is_dir raises for names that are too long
            found += images.find([path], written)
        else:
            # A path that is not there is reported with the unreadable ones: the list goes on.
            found += images.in_file(path, Path(path), path)
    if others := [path for path in paths if path != "-"]:
        found += images.find(others, written)
    if not found:
        raise InputError("the list of images on stdin is empty.")
    return found


def passed_over(paths: Sequence[str], written: Sequence[Path]) -> Iterator[Path]:
    """Those folders of `written` that are there, inside a folder of `paths`."""
    roots = {Path(path).resolve() for path in paths if path != "-"}
    for folder in written:
        if folder.is_dir() and roots & set(folder.resolve().parents):
            yield folder


def _listed() -> list[str]:
    """Paths on stdin; a name that holds a newline needs the form that ``find -print0`` writes."""
    data = sys.stdin.buffer.read()
    if b"\0" in data:
        names = data.split(b"\0")
    else:
        names = [line.removesuffix(b"\r") for line in data.split(b"\n")]
    return [os.fsdecode(name) for name in names if name]
