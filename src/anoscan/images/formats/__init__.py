"""Files become images: one reader for each family of formats, chosen by a file's first bytes.

A file that holds several images (a TIFF of many pages, a volume, a stack) has pages, counted from
1. All readers raise `InputError` with the bare reason, whatever a file holds.
"""

from __future__ import annotations

import dataclasses
import hashlib
from pathlib import Path
from typing import Protocol

from anoscan.core.errors import InputError
from anoscan.images.formats import dicom, nifti, npy, pillow, png, tiff
from anoscan.images.formats.picture import Opened, digest_of, reasons, regular

__all__ = [
    "DAMAGE", "EXTENSIONS", "KINDS", "Floats", "Opened", "count", "is_named_like_one", "read",
]  # fmt: skip


class Reader(Protocol):
    """A module of this package that reads a family of formats with pages."""

    SUFFIXES: str

    def begins(self, head: bytes, name: str) -> bool:
        """Whether a file with these first bytes, and that name in lower case, is of the family."""

    def count(self, file: Path) -> int:
        """Number of its images."""

    def read(self, file: Path, page: int | None, draft_side: int, *, deep: bool) -> Opened:
        """Decode one of its images; `page` is None for the only one."""


# A DICOM file may begin as a TIFF does.
READERS: tuple[Reader, ...] = (dicom, tiff, npy, nifti, png)
_HEAD = 352  # bytes; NIfTI says what it is in the last of them

_PAGED = frozenset(" ".join(reader.SUFFIXES for reader in READERS).split())
EXTENSIONS = _PAGED | frozenset(pillow.SUFFIXES.split())


def is_named_like_one(path: Path) -> bool:
    """Whether the search of a folder takes a file for an image."""
    name = path.name.lower()
    known = path.suffix.lower() in EXTENSIONS or name.endswith(tuple(nifti.SUFFIXES.split()))
    return known or dicom.is_named_without_suffix(path)


def count(file: Path) -> int:
    """Number of images in a file; 1 where it cannot be told, and reading will say why."""
    try:
        reader = _reader(file)
        return reader.count(file) if reader else 1
    except InputError:
        return 1


def read(file: Path, page: int | None, *, draft_side: int, deep: bool) -> Opened:
    """Decode one image of a file.

    Parameters
    ----------
    page : int, optional
        Its number, from 1; None for the only image of a file.
    draft_side : int
        A huge JPEG may be decoded no larger than it takes for this side.
    deep : bool
        Whether colours keep more than 8 bits, where a reader has the choice.

    Raises
    ------
    InputError
        Whose message is the bare reason.
    """
    reader = _reader(file)
    pages = reader.count(file) if reader else 1
    if page is None and pages > 1:
        raise InputError(f"holds {pages} images: add a number to the path, as in scan.tif/1")
    if page is not None and not 1 <= page <= pages:
        raise InputError(f"has no page {page}: it has {pages}")
    if reader is None:
        return pillow.read(file, draft_side)
    opened = reader.read(file, page, draft_side, deep=deep)
    if opened.digest:
        return opened
    return dataclasses.replace(opened, digest=_digest(file, page, opened))


def _digest(file: Path, page: int | None, opened: Opened) -> bytes:
    if page is not None:
        return digest_of(opened.picture)
    with reasons(), file.open("rb") as source:
        return hashlib.file_digest(source, "sha256").digest()


def _reader(file: Path) -> Reader | None:
    """Reader of a file; None is Pillow, which is asked about all else."""
    regular(file)
    with reasons(), file.open("rb") as source:
        head = source.read(_HEAD)
    name = file.name.lower()
    return next((reader for reader in READERS if reader.begins(head, name)), None)
