"""Folders that are laid out like MVTec AD, and the part of them that a command uses."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from anoscan.core import storage
from anoscan.core.errors import InputError, UsageError
from anoscan.core.urls import shown, url_of
from anoscan.images.formats import has_known_ending
from anoscan.images.globs import expanded
from anoscan.images.places import is_folder

LAYOUT = "test/good, test/<type> and maybe ground_truth/<type>/<name>_mask.png"
_TRAIN, _UNSEEN = Path("train", "good"), Path("test", "good")
TEST, MASKS = "test", "ground_truth"


def training_paths(paths: Sequence[str | Path]) -> tuple[list[str | Path], str | None]:
    """Return folders of normal images to train on, and a note for the user where one was replaced.

    A folder that is laid out like MVTec AD is replaced by its ``train/good``, and a pattern by what
    it matches (see `globs.expanded`).
    """
    return _narrowed(expanded(paths), _TRAIN)


def unseen_paths(paths: Sequence[str | Path]) -> tuple[list[str | Path], str | None]:
    """Return folders of normal images that no training saw, and a note as `training_paths` does.

    A folder that is laid out like MVTec AD is replaced by its ``test/good``.

    Raises
    ------
    InputError
        When such a folder has no ``test/good``.
    """
    paths = expanded(paths)
    for path in paths:
        if is_laid_out(path) and not is_folder(Path(path) / _UNSEEN):
            raise InputError(
                f"{path} is laid out like MVTec AD, but has no {_UNSEEN.as_posix()}.",
                hint="Name the folder of the images themselves.",
            )
    return _narrowed(paths, _UNSEEN)


def query_paths(
    paths: str | Path | Sequence[str | Path], *, patterns: bool = True
) -> tuple[list[str], str | None]:
    """Return the paths of query images, and a note as `training_paths` does; one path may be given.

    A folder that is laid out like MVTec AD is replaced by its ``test``. With `patterns`, a pattern
    is replaced by what it matches.

    Raises
    ------
    InputError
        When a pattern matches nothing.
    UsageError
        When something is not a path, such as an array.
    """
    several = [paths] if isinstance(paths, str | Path) else list(paths)
    for path in several:
        if not isinstance(path, str | os.PathLike):
            raise UsageError(
                f"images are given as paths of files and folders. Got {type(path).__name__}.",
                hint="Detector.predict takes arrays, Pillow images and tensors.",
            )
    given = [str(path) for path in (expanded(several) if patterns else several)]
    _, note = _narrowed(given, Path(TEST))
    # Path would change what the user wrote, and turn an empty path into the current folder.
    return [os.path.join(p, TEST) if p and is_laid_out(p) else p for p in given], note  # noqa: PTH118


def is_laid_out(folder: str | Path) -> bool:
    """Say whether a folder is laid out like MVTec AD."""
    if (url := url_of(folder)) is not None:
        parts = (f"{url.rstrip('/')}/{part}" for part in (_TRAIN.as_posix(), TEST))
        return not has_known_ending(url) and all(map(storage.is_folder, parts))
    folder = Path(folder)
    # Path.is_dir raises an error for names that are too long and for places without permission.
    return os.path.isdir(folder / _TRAIN) and os.path.isdir(folder / TEST)  # noqa: PTH112


def _narrowed(paths: Sequence[str | Path], part: Path) -> tuple[list[str | Path], str | None]:
    found: list[str | Path] = []
    narrowed = []
    for given in paths:
        # Path would change a URL.
        url = url_of(given)
        path = Path(given) if url is None else url
        if is_laid_out(path):
            if isinstance(path, Path):
                path = path / part
                narrowed.append(path.as_posix())
            else:
                path = f"{path.rstrip('/')}/{part.as_posix()}"
                narrowed.append(shown(path))
        found.append(path)
    if not narrowed:
        return found, None
    return found, f"laid out like MVTec AD: only {' and '.join(narrowed)} is used"
