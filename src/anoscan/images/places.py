"""What is at a path, here or remote: a file, a folder, or nothing."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from anoscan.core import storage
from anoscan.core.urls import url_of
from anoscan.images.files import page_of


def is_folder(path: Path) -> bool:
    """Say whether a path is a folder."""
    url = url_of(path)
    return path.is_dir() if url is None else storage.is_folder(url)


def is_file(path: Path) -> bool:
    """Say whether a path, which may not even be valid, names a file or a page of a file."""
    try:
        if (url := url_of(path)) is not None:
            return page_of(path) is not None or storage.is_file(url)
        return path.is_file() or page_of(path) is not None
    except (OSError, ValueError):  # the path is too long, or access is not permitted
        return False


def joined(place: Path, name: str) -> Path | None:
    """Return the path that a file in `place` names; None where that is in another storage.

    Labels are not trusted: they cannot make this program ask other servers.
    """
    here, there = url_of(place), url_of(name)
    if here is not None and there is not None:
        return Path(name) if here.split("/")[:3] == there.split("/")[:3] else None
    path = place / name
    return path if (url_of(path) is None) == (here is None) else None


def presence(base: Path) -> Callable[[Path], bool]:
    """Return `is_file` for paths below a folder; a remote folder is listed only once.

    Raises
    ------
    InputError
        When a remote folder cannot be listed.
    """
    if (url := url_of(base)) is None:
        return is_file
    present = {inside for inside, _ in storage.below(url)}

    def is_there(path: Path) -> bool:
        if not path.is_relative_to(base):
            return is_file(path)
        return path.relative_to(base).as_posix() in present or page_of(path) is not None

    return is_there


def folders_in(folder: Path) -> list[str]:
    """Return the names of the folders in a folder; none where it is not one."""
    if (url := url_of(folder)) is not None:
        return storage.entries(url)[0]
    return [entry.name for entry in folder.iterdir() if entry.is_dir()] if folder.is_dir() else []
