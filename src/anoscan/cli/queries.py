"""Find the query images of a command line: files, folders, or a list on stdin."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from anoscan.cli import streams
from anoscan.core.errors import InputError

if TYPE_CHECKING:
    from anoscan.images.files import ImageFile


def gather(
    paths: Sequence[str],
    written: Sequence[Path] = (),
    *,
    allow_empty: bool = False,
    every: int = 1,
) -> tuple[list[ImageFile], list[str]]:
    """Find the images of the arguments; ``-`` stands for the list on stdin.

    In a folder laid out like MVTec AD, only ``test`` is read. Training images have lower scores
    than new images, and masks are not query images.

    Parameters
    ----------
    paths : sequence of str
        Files, folders and ``-``.
    written : sequence of path
        Folders that the same command writes pictures to. Where they are inside a folder of
        `paths`, they are not searched.
    allow_empty : bool
        Whether the list on stdin may be empty, and folders may hold no image.

    every : int
        Of videos, every so many-th frame is taken.

    Returns
    -------
    images : list of ImageFile
    notes : list of str
        Messages for the user about folders that are read in part, or not at all.

    Raises
    ------
    InputError
        When a path does not exist, there is no image, or a folder or stdin cannot be read.
    """
    from anoscan.images.files import every_nth, find, in_file
    from anoscan.images.layout import query_paths

    listed, narrowed = query_paths(_listed() if "-" in paths else [], patterns=False)
    given, also = query_paths([path for path in paths if path != "-"])
    notes = [note for note in (narrowed, also, *_notes(written, [*listed, *given])) if note]
    if "-" not in paths:
        return list(every_nth(find(given, written, allow_empty=allow_empty), every)), notes
    found: list[ImageFile] = []
    for path in listed:
        if os.path.isdir(path):  # noqa: PTH112 - Path.is_dir raises for names that are too long
            found += find([path], written, allow_empty=allow_empty)
        else:
            # A missing path is reported later, with unreadable files, so the others are scored.
            found += in_file(path, Path(path), path)
    if given:
        found += find(given, written, allow_empty=allow_empty)
    if not found and not allow_empty:
        raise InputError(
            "the list of images on stdin is empty.", hint="Where that is no fault: --allow-empty."
        )
    return list(every_nth(found, every)), notes


def _notes(written: Sequence[Path], paths: Sequence[str]) -> Iterator[str]:
    """Yield notes on folders of `written` that are a folder of `paths` or inside one."""
    roots = {Path(os.path.realpath(path)) for path in paths} if written else set()
    for folder in written:
        real = Path(os.path.realpath(folder))
        if real in roots:
            yield f"pictures are written among the queries, where a later run ranks them: {folder}"
        elif os.path.isdir(real) and roots & set(real.parents):  # noqa: PTH112
            yield f"not looked into, as pictures are written there: {folder}"


def _listed() -> list[str]:
    """Read paths from stdin; names with newlines need the form of ``find -print0``."""
    try:
        data = sys.stdin.buffer.read()
    except OSError as error:
        raise InputError(f"cannot read the list on stdin: {streams.reason(error)}.") from error
    if b"\0" in data:
        names = data.split(b"\0")
    else:
        names = [line.removesuffix(b"\r") for line in data.split(b"\n")]
    return [os.fsdecode(name) for name in names if name]
