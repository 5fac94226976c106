"""Find image files in folders, here or remote, name them, and split files into their pages."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

from anoscan.core import storage
from anoscan.core.errors import InputError
from anoscan.core.storage import RemoteFile
from anoscan.core.urls import shown, url_of
from anoscan.images import formats
from anoscan.images.formats.picture import EXTRAS, KINDS, Opened, os_reason


@dataclass(frozen=True)
class ImageFile:
    """An image file, or one page of it, that is not opened yet.

    Parameters
    ----------
    path : str
        Name of the image in results: the path that the user gave, joined with the path inside that
        folder. It is '/'-separated.
    file : Path
    inside : str
        Path relative to the folder that was given, '/'-separated; for a single file, its name.
    page : int, optional
        Number of the page, from 1; None for the only image of a file. The number, or the name that
        the format gives the page, ends `path` and `inside`, as if the file were a folder of its
        pages. No other file can have such a path.
    """

    path: str
    file: Path
    inside: str
    page: int | None = None
    in_memory: ClassVar[bool] = False  # such an image needs no decoder, and no process for one
    remote: ClassVar[bool] = False

    @contextmanager
    def here(self) -> Iterator[ImageFile]:
        """Return this image in a file of this computer, which is there until the context ends."""
        yield self

    def read(self, *, draft_side: int, deep: bool, channels: int = 3) -> Opened:
        """Decode the image; see `formats.read`, which also says what is raised."""
        return formats.read(
            self.file, self.page, draft_side=draft_side, deep=deep, channels=channels
        )


@dataclass(frozen=True)
class RemoteImage(ImageFile):
    """An image in a remote file, of which `file` has only the name.

    `source` says where it is.
    """

    source: RemoteFile = field(kw_only=True, repr=False)
    remote: ClassVar[bool] = True

    @contextmanager
    def here(self) -> Iterator[ImageFile]:
        """Fetch the file; an InputError has the bare reason why that fails."""
        with storage.copied(self.source) as copy:
            yield ImageFile(self.path, copy, self.inside, self.page)

    def read(self, *, draft_side: int, deep: bool, channels: int = 3) -> Opened:
        """Fetch and decode the image."""
        with self.here() as copy:
            return copy.read(draft_side=draft_side, deep=deep, channels=channels)


def find(
    paths: Sequence[str | Path], apart: Sequence[Path] = (), *, allow_empty: bool = False
) -> list[ImageFile]:
    """Find the images of files, of folders and of pages such as ``scan.tif/3``.

    Files stay in their order. Folders are searched recursively and sorted, without hidden entries,
    ``__MACOSX``, the folders `apart` and files with other extensions. A file that is reached twice
    by the same path is returned once. Links to folders are followed, but no folder is read twice.
    URLs are asked of the storage that they name.

    Raises
    ------
    InputError
        When a path does not exist, a folder cannot be listed, or `paths` is empty. Also when a
        folder holds no image, unless `allow_empty`.
    """
    if not paths:
        raise InputError("no images given.", hint="Name image files or folders.")
    found: dict[str, ImageFile] = {}
    several = len(paths) > 1
    for path in paths:
        if (url := url_of(path)) is not None:
            _add(found, _remote(url, several=several, allow_empty=allow_empty))
            continue
        name = str(path).replace(os.sep, "/")
        root = Path(path)
        paged = page_of(root)
        if not name or not (paged or exists(root)):
            raise InputError(f"{name or 'an empty path'} does not exist.")
        if paged or not root.is_dir():
            short = f"{root.parent.name}/{root.name}" if paged else root.name
            _add(found, in_file(name, root, name if several else short))
            continue
        inside = _images_below(root, apart)
        if not inside and not allow_empty:
            raise _no_images(name)
        prefix = name if name.endswith("/") else name + "/"
        for below in inside:
            whole = prefix + below
            _add(found, in_file(whole, root / below, whole if several else below))
    return list(found.values())


def _no_images(name: str) -> InputError:
    return InputError(
        f"no images in {name}.",
        hint=f"Images are {KINDS} files; folders and tar files may nest. {EXTRAS}",
    )


def _remote(url: str, *, several: bool, allow_empty: bool) -> list[ImageFile]:
    """Find the images of a remote file or folder, sorted as those of a folder here are."""
    whole = shown(url)
    if page_of(Path(url)) is not None:
        return [named(url, Path(url), whole if several else "/".join(whole.split("/")[-2:]))]
    source = storage.look(url)
    if source is not None:
        return _of_source(whole, source, whole if several else Path(whole).name)
    listed = sorted(
        (inside, source)
        for inside, source in storage.below(url)
        if formats.has_known_ending(inside)
    )
    if not listed and not allow_empty:
        raise _no_images(whole)
    prefix = whole.rstrip("/") + "/"

    def images(item: tuple[str, RemoteFile]) -> list[ImageFile]:
        inside, source = item
        return _of_source(prefix + inside, source, prefix + inside if several else inside)

    with ThreadPoolExecutor(storage.THREADS, thread_name_prefix="list") as threads:
        # Only files that may have pages are fetched for it, so threads would not help the others.
        paged = {inside for inside, _ in listed if formats.may_have_pages(inside)}
        coming = {item[0]: threads.submit(images, item) for item in listed if item[0] in paged}
        return [
            image
            for item in listed
            for image in (coming[item[0]].result() if item[0] in paged else images(item))
        ]


def _of_source(path: str, source: RemoteFile, inside: str) -> list[ImageFile]:
    """Return the images of a remote file: its only one, or its pages."""
    file = Path(path)
    plain = file.name.partition("?")[0]  # an address may ask for something, as file.tif?id=3
    pages = _names_in(source) if formats.may_have_pages(plain) else ()
    if not pages:
        return [RemoteImage(path, file, inside, source=source)]
    return [
        RemoteImage(f"{path}/{name}", file, f"{inside}/{name}", number, source=source)
        for number, name in enumerate(pages, start=1)
    ]


def _source(url: str) -> RemoteFile:
    """Return a remote file with its version, so that its copy is kept for its next page."""
    try:
        return storage.look(url) or RemoteFile(url, None, None)
    except InputError:
        return RemoteFile(url, None, None)


def _names_in(source: RemoteFile) -> tuple[str, ...]:
    """Names of the pages of a remote file, as `_names` has them; () where it is not to be had."""
    try:
        with storage.copied(source) as copy:
            return _names(copy)
    except InputError:
        return ()


def every_nth(files: Sequence[ImageFile], n: int) -> Sequence[ImageFile]:
    """Keep every n-th frame of each video, from the first on, and all other images."""
    if n == 1:
        return files
    return [
        image
        for image in files
        if image.page is None
        or (image.page - 1) % n == 0
        or not image.file.name.lower().endswith(formats.VIDEOS)
    ]


def in_file(path: str, file: Path, inside: str) -> list[ImageFile]:
    """Return the images of a file: its only image, all its pages, or the page that `file` names.

    The file or the page may be missing; only decoding will find that.
    """
    if (url := url_of(path)) is not None and page_of(Path(url)) is None:
        return _of_source(shown(url), RemoteFile(url, None, None), inside)
    pages = () if page_of(file) else _names(file)
    if not pages:
        return [named(path, file, inside)]
    return [
        ImageFile(f"{path}/{name}", file, f"{inside}/{name}", number)
        for number, name in enumerate(pages, start=1)
    ]


def _names(file: Path) -> tuple[str, ...]:
    """Names of the pages of a file of several images; () for others."""
    if not formats.lists_natively(file):
        return formats.page_names(file)
    from anoscan.images import pool  # which needs this module

    try:
        return pool.read_one(_names_of, ImageFile(str(file), file, file.name))
    except InputError:
        return ()


def _names_of(image: ImageFile) -> tuple[str, ...]:
    return formats.page_names(image.file)


def named(path: str, file: Path, inside: str) -> ImageFile:
    """Return the only image of a file, or the page that `file` names."""
    parent, page = page_of(file) or (file, None)
    if (url := url_of(parent)) is not None:
        source = RemoteFile(url, None, None) if page is None else _source(url)
        return RemoteImage(shown(url_of(path) or path), parent, inside, page, source=source)
    return ImageFile(path, parent, inside, page)


def page_of(path: Path) -> tuple[Path, int] | None:
    """Return file and page of a path like scan.tif/3, where scan.tif is a file; None for others.

    In formats whose pages have names, these come before numbers.
    """
    text = path.as_posix().lower()
    inside = any(f"{ending}/" in text for ending in formats.CONTAINERS)
    for parent in path.parents if inside else ():
        if parent.name.lower().endswith(formats.CONTAINERS):
            try:
                if (url := url_of(parent)) is not None:
                    pages = _names_in(_source(url))
                else:
                    pages = _names(parent) if parent.is_file() else ()
            except (OSError, ValueError):
                continue
            if (name := path.relative_to(parent).as_posix()) in pages:
                return parent, pages.index(name) + 1
    try:
        if path.name.isascii() and path.name.isdecimal():
            remote = url_of(path) is not None and formats.may_have_pages(path.parent.name)
            if remote or path.parent.is_file():
                return path.parent, int(path.name)
    except (OSError, ValueError):
        pass
    return None


def _add(found: dict[str, ImageFile], images: Iterable[ImageFile]) -> None:
    for image in images:
        absolute = os.path.normpath(image.file.absolute())
        found.setdefault(absolute if image.page is None else f"{absolute}/{image.page}", image)


def images_below(root: Path) -> list[str]:
    """Return the paths inside a folder of all files that `find` takes for images, sorted.

    Raises
    ------
    InputError
        When a folder cannot be listed.
    """
    try:
        return _images_below(root, ())
    except OSError as error:
        raise InputError(f"folder {root} cannot be read: {os_reason(error)}.") from None


def exists(path: Path) -> bool:
    """Say whether a path exists.

    Raises
    ------
    InputError
        When the system does not allow an answer.
    """
    try:
        path.stat()
    except FileNotFoundError:
        return False
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be opened: {os_reason(error)}.") from None
    return True


def _images_below(root: Path, apart: Sequence[Path]) -> list[str]:
    # Real folders come before linked ones: a folder that is reached both ways keeps its own name.
    real, linked = deque([(root, "")]), deque[tuple[Path, str]]()
    visited = {_identity(folder) for folder in apart if os.path.isdir(folder)}  # noqa: PTH112
    visited -= {_identity(root)}
    images: list[str] = []
    while real or linked:
        folder, prefix = real.popleft() if real else linked.popleft()
        try:
            identity = _identity(folder)
            if identity in visited:
                continue
            visited.add(identity)
            with os.scandir(folder) as entries:
                for entry in entries:
                    if entry.name.startswith(".") or entry.name == "__MACOSX":
                        continue
                    link = entry.is_symlink()
                    if Path(entry.path).is_dir() if link else entry.is_dir():
                        queue = linked if link else real
                        queue.append((folder / entry.name, f"{prefix}{entry.name}/"))
                    elif formats.is_named_like_one(folder / entry.name):
                        images.append(prefix + entry.name)
        except OSError as error:
            raise InputError(f"folder {folder} cannot be read: {os_reason(error)}.") from None
    return sorted(images)


def _identity(folder: Path) -> tuple[int, int]:
    found = folder.stat()
    return found.st_dev, found.st_ino
