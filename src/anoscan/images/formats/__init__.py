"""Read image files with one reader for each family of formats, chosen by the first bytes of a file.

A file of several images (a TIFF of many pages, a volume, a stack) has pages, counted from 1.
Whatever a file holds, readers raise only `InputError`, with the bare reason.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from anoscan.core.errors import InputError
from anoscan.images.formats import (
    dicom,
    hdf5,
    jpeg,
    nifti,
    npy,
    pillow,
    png,
    pnm,
    tar,
    tiff,
    video,
)
from anoscan.images.formats.picture import Opened, damage, digest_of, reasons, regular


class Reader(Protocol):
    """Interface of the modules of this package that read a family of formats with pages."""

    SUFFIXES: str

    def begins(self, head: bytes, name: str) -> bool:
        """Whether a file with these first bytes and this name (in lower case) is of the family."""

    def count(self, file: Path) -> int:
        """Return the number of images in a file."""

    @property
    def read(self) -> Callable[..., Opened]:
        """Decode one image of a file; see `read` below. Some take the number of `channels` too."""


# DICOM comes first, because a DICOM file may begin like a TIFF.
READERS: tuple[Reader, ...] = (dicom, tar, tiff, npy, nifti, hdf5, png, jpeg, pnm, video)
_NAMING = (tar, npy, hdf5, video)  # readers whose pages have names
VIDEOS, ARCHIVES = tuple(video.SUFFIXES.split()), tuple(tar.SUFFIXES.split())
CONTAINERS = (".npz", ".h5", ".hdf5", *VIDEOS, *ARCHIVES)  # endings of such files
# Readers whose pages a process of its own lists: native code, or headers of any size.
_NATIVE = (hdf5, video, tar)
_WITH_PAGES = " ".join(reader.SUFFIXES for reader in (dicom, tar, tiff, npy, nifti, hdf5, video))
_MANY = (tiff, npy, hdf5)  # readers of images with more channels than colours have
_HEAD = 352  # bytes that identify a format; the mark of NIfTI is in the last of them

_PAGED = frozenset(" ".join(reader.SUFFIXES for reader in READERS).split())
EXTENSIONS = _PAGED | frozenset(pillow.SUFFIXES.split())


def is_named_like_one(path: Path) -> bool:
    """Whether the search of a folder takes a file for an image, by its ending.

    A file without an ending, or with a number as one, is an image if its content is DICOM.
    """
    return has_known_ending(path.name) or dicom.is_named_without_suffix(path)


def has_known_ending(name: str) -> bool:
    """Whether a file name ends like those of images."""
    name = name.lower()
    return name.endswith(tuple(nifti.SUFFIXES.split())) or Path(name).suffix in EXTENSIONS


def may_have_pages(name: str) -> bool:
    """Whether a file of this name may hold several images, as its ending says."""
    return name.lower().endswith(tuple(_WITH_PAGES.split()))


def is_archive(file: Path) -> bool:
    """Whether the pages of a file are files of their own: those of a tar file are."""
    return file.name.lower().endswith(ARCHIVES)


def count(file: Path) -> int:
    """Number of images in a file; 1 where it cannot be read, since `read` will give the reason."""
    try:
        with damage():
            reader = _reader(file)
            return reader.count(file) if reader else 1
    except InputError:
        return 1


def lists_natively(file: Path) -> bool:
    """Whether native code has to list the pages of a file, which a process of its own should do."""
    try:
        return _reader(file) in _NATIVE
    except InputError:
        return False


def page_names(file: Path) -> tuple[str, ...]:
    """Names of the pages of a file of several images, which are numbers from 1 in most formats.

    It is () for a file of one image, or where it cannot be read: `read` will give the reason.
    """
    try:
        with damage():
            reader = _reader(file)
            pages = reader.count(file) if reader else 1
            if pages < 2 and reader is not tar:
                return ()
            named = next((some.names(file) for some in _NAMING if some is reader), ())
            return named or tuple(map(str, range(1, pages + 1)))
    except InputError:
        return ()


def read(file: Path, page: int | None, *, draft_side: int, deep: bool, channels: int = 3) -> Opened:
    """Decode one image of a file: page number `page`, from 1, or with None the only image.

    A JPEG may be decoded at a lower resolution, but not below a side of `draft_side` pixels. With
    `deep`, colours keep more than 8 bits where a reader has the choice.

    With `channels` of 1 or 3, an image is grey or in colour, with or without opacity. Another
    number is that of channels that the image must have. `AS_STORED` takes grey, colours and
    channels as they are; four samples are then colours with opacity.

    Raises
    ------
    InputError
        When there is no such image, or it cannot be decoded. The message is the bare reason.
    """
    with damage():  # of kinds that no reader knows yet
        opened = _read(file, page, draft_side, deep=deep, channels=channels).checked(channels)
        if opened.digest:
            return opened
        return dataclasses.replace(opened, digest=_digest(file, page, opened))


def _read(file: Path, page: int | None, draft_side: int, *, deep: bool, channels: int) -> Opened:
    reader = _reader(file)
    pages = reader.count(file) if reader else 1
    if page is None and pages > 1:
        raise InputError(f"holds {pages} images: add a number to the path, as in scan.tif/1")
    if page is not None and not 1 <= page <= pages:
        raise InputError(f"has no page {page}: it has {pages}")
    if reader is None:
        return pillow.read(file, draft_side)
    some = {"channels": channels} if reader in _MANY else {}
    return reader.read(file, page, draft_side, deep=deep, **some)


def _digest(file: Path, page: int | None, opened: Opened) -> bytes:
    if page is not None:
        return digest_of(opened.picture)
    with reasons(), file.open("rb") as source:
        return hashlib.file_digest(source, "sha256").digest()


def _reader(file: Path) -> Reader | None:
    """Reader of a file; None where no reader claims it, and Pillow has to try."""
    regular(file)
    with reasons(), file.open("rb") as source:
        head = source.read(_HEAD)
    name = file.name.lower()
    return next((reader for reader in READERS if reader.begins(head, name)), None)
