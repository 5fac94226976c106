"""Patterns of paths, such as ``imgs/**/*.png``, for shells that do not expand them."""

from __future__ import annotations

import glob
import os
from collections.abc import Iterable
from pathlib import Path

from anoscan.core import storage
from anoscan.core.errors import InputError
from anoscan.core.urls import shown, url_of
from anoscan.images import formats
from anoscan.images.files import page_of


def is_pattern(path: str | Path) -> bool:
    """Whether a path is a pattern; one that exists as it is written is none.

    In a URL only ``*`` makes a pattern, for the other characters are common there.
    """
    if (url := url_of(path)) is not None:
        return "*" in url
    text = os.fspath(path)
    return glob.has_magic(text) and not (os.path.lexists(text) or page_of(Path(text)))


def expanded(paths: Iterable[str | Path]) -> list[str | Path]:
    """Replace patterns by the folders and image files that they match, sorted; the rest stays.

    ``**`` matches any number of folders. Hidden names are matched only by a pattern with the dot.
    Where no match is named like an image, all matches are taken.

    Raises
    ------
    InputError
        When a pattern matches nothing.
    """
    found: list[str | Path] = []
    for path in paths:
        found += matches(path) if is_pattern(path) else [path]
    return found


def matches(pattern: str | Path) -> list[str]:
    """Return the paths that a pattern matches; see `expanded`."""
    if (url := url_of(pattern)) is not None:
        listed = storage.matching(url)
        named = [path for path in listed if formats.has_known_ending(path)]
        if not listed:
            raise _nothing(shown(url))
        return named or listed
    # Path.glob would change how the path was written.
    every = sorted(path for path in glob.glob(os.fspath(pattern), recursive=True) if path)  # noqa: PTH207
    if not every:
        raise _nothing(pattern)
    # A pattern that ends with ** matches folders and what is in them.
    files = [path for path in every if not os.path.isdir(path)]  # noqa: PTH112
    if "**" in Path(pattern).name and files:
        every = files
    images = [p for p in every if os.path.isdir(p) or formats.is_named_like_one(Path(p))]  # noqa: PTH112
    return images or every


def _nothing(pattern: str | Path) -> InputError:
    return InputError(
        f"no file matches {pattern}.",
        hint="* is any part of a name, and ** any folders: 'imgs/**/*.png'.",
    )


def root_of(path: str | Path) -> Path:
    """Return the folder that a pattern starts from; a path that is no pattern is returned as is."""
    if not is_pattern(path):
        return Path(path)
    parts = Path(path).parts
    fixed = next(number for number, part in enumerate(parts) if glob.has_magic(part))
    return Path(*parts[:fixed])
