"""Read tar files, such as the shards of WebDataset: the images in it are pages, as in a folder."""

from __future__ import annotations

import functools
import re
import tarfile
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from anoscan.core.errors import InputError
from anoscan.core.files import temporary_folder
from anoscan.images.formats.picture import (
    LARGEST_FILE,
    Opened,
    check_pages,
    damage,
    reasons,
    regular,
)

SUFFIXES = ".tar"
_MAGIC = slice(257, 262)
_PIECE = 2**20


class _Member(NamedTuple):
    """An image in a tar file: its name, and where its bytes are."""

    name: str
    start: int
    size: int


def begins(head: bytes, name: str) -> bool:
    """Whether these are the first bytes of a tar file, which is not compressed."""
    return head[_MAGIC] == b"ustar" and name.endswith(SUFFIXES)


def count(file: Path) -> int:
    """Number of images in a tar file.

    Raises
    ------
    InputError
        When there is none.
    """
    return len(_members_of(file))


def names(file: Path) -> tuple[str, ...]:
    """Paths of the images in a tar file, in its order."""
    return tuple(member.name for member in _members_of(file))


def read(file: Path, page: int | None, draft_side: int, *, deep: bool) -> Opened:
    """Decode one image of a tar file."""
    from anoscan.images import formats  # which needs this module

    with _unpacked(file, page or 1) as member:
        if formats.count(member) > 1:
            raise InputError("holds several images, which are not read inside a tar file")
        return formats.read(member, None, draft_side=draft_side, deep=deep)


@contextmanager
def _unpacked(file: Path, page: int) -> Iterator[Path]:
    """Write one image of a tar file to a temporary file of its name."""
    member = _members_of(file)[page - 1]
    if member.size > LARGEST_FILE:
        raise InputError("file is larger than 2 GiB")
    name = re.sub(r"[^\w.() +-]", "_", PurePosixPath(member.name).name)[-60:]
    with temporary_folder(Path(tempfile.gettempdir())) as folder:
        place = folder / name
        with reasons(), file.open("rb") as source, place.open("wb") as sink:
            source.seek(member.start)
            left = member.size
            while left and (piece := source.read(min(left, _PIECE))):
                sink.write(piece)
                left -= len(piece)
        yield place


def _members_of(file: Path) -> tuple[_Member, ...]:
    status = regular(file)
    found = _members(file, status.st_size, status.st_mtime_ns)
    if not found:
        raise InputError("is a tar file without images")
    return found


@functools.lru_cache(maxsize=16)
def _members(file: Path, size: int, changed: int) -> tuple[_Member, ...]:
    """List the images of a tar file; `size` and `changed` (ns) keep versions of it apart."""
    from anoscan.images.formats import has_known_ending  # whose package needs this module

    found: dict[str, _Member] = {}
    with damage(), tarfile.open(file, "r:") as archive:
        for info in archive:
            # Only the list stays: the archive would keep every header.
            archive.members = []  # type: ignore[attr-defined]
            path = PurePosixPath(info.name)
            hidden = any(part.startswith(".") or part == "__MACOSX" for part in path.parts)
            is_image = has_known_ending(path.name) and path.suffix.lower() != SUFFIXES
            if is_image and info.isreg() and not (hidden or info.issparse()):
                name = path.as_posix().lstrip("/")
                found.pop(name, None)  # of two with a name, the last one counts
                found[name] = _Member(name, info.offset_data, info.size)
                check_pages(len(found))
    return tuple(found.values())
