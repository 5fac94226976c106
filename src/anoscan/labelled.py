"""Labelled images and their masks: named by a CSV, or laid out in folders as MVTec AD is.

That layout is ``train/good``, ``test/<type>`` and ``ground_truth/<type>/<name>_mask.png``.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from anoscan import evaluation, images, interest
from anoscan.errors import InputError, UsageError
from anoscan.images import Decoded, ImageFile

MASK_SUFFIXES = (".png", ".bmp", ".tif", ".tiff")
LAYOUT = "test/good, test/<type> and maybe ground_truth/<type>/<name>_mask.png"
_TRAIN, _UNSEEN = Path("train", "good"), Path("test", "good")
_TEST, _MASKS = "test", "ground_truth"


@dataclass(frozen=True)
class Labelled:
    """An image and what is said of it; `mask` is the file of its mask, None where there is none."""

    image: ImageFile
    anomalous: bool
    cls: str | None = None
    mask: Path | None = None


@dataclass(frozen=True)
class LabelledSet:
    """Images with labels.

    `missing` are the paths of labels without an image, `unlabelled` counts images without a label;
    `masks` says whether pixels can be measured too, `lost` names masks of the CSV that are no file.
    """

    images: tuple[Labelled, ...]
    missing: tuple[str, ...]
    unlabelled: int
    masks: bool
    lost: tuple[str, ...] = ()


def gather(labels: Path | None, folder: Path | None, masks: Path | None) -> LabelledSet:
    """Find labelled images and their masks.

    Parameters
    ----------
    labels : path, optional
        CSV; see `evaluation.read_labels`. Without it, `folder` must be laid out like MVTec AD.
    folder : path, optional
        What paths in the CSV are relative to; by default the CSV's folder.
    masks : path, optional
        Folder of masks: under the image's own relative name with another suffix, or with ``_mask``
        added to it. Folders that all images share may be left out.

    Raises
    ------
    InputError
        When nothing is found, or none of the masks asked for.
    UsageError
        Without labels of either kind.
    """
    if masks is not None and not masks.is_dir():
        raise InputError(f"the folder of masks {masks} does not exist.")
    found = _from_folders(folder, masks) if labels is None else _from_csv(labels, folder, masks)
    if masks is not None and not any(item.mask for item in found.images):
        some = next((item for item in found.images if item.anomalous), found.images[0])
        name = PurePosixPath(some.image.inside).stem
        raise InputError(
            f"none of the masks in {masks} has the name of a labelled image.",
            hint=f"A mask has the relative path of its image, and is called {name}.png or "
            f"{name}_mask.png for {some.image.inside!r}.",
        )
    return found


def training_paths(paths: Sequence[str | Path]) -> tuple[list[Path], str | None]:
    """Folders of normal images: of one that is laid out like MVTec AD, ``train/good`` alone.

    Returns
    -------
    paths : list of Path
    note : str or None
        What a user should know of it.
    """
    return _narrowed(paths, _TRAIN)


def unseen_paths(paths: Sequence[str | Path]) -> tuple[list[Path], str | None]:
    """Folders of normal images that no training saw: ``test/good`` of one laid out like MVTec AD.

    Returns
    -------
    paths, note
        As of `training_paths`.

    Raises
    ------
    InputError
        When there is no ``test/good``.
    """
    for path in map(Path, paths):
        if _laid_out(path) and not (path / _UNSEEN).is_dir():
            raise InputError(
                f"{path} is laid out like MVTec AD, but has no {_UNSEEN.as_posix()}.",
                hint="Name the folder of the images themselves.",
            )
    return _narrowed(paths, _UNSEEN)


def query_paths(paths: str | Path | Sequence[str | Path]) -> tuple[list[str], str | None]:
    """Paths of queries, or the only one: of a folder laid out like MVTec AD, ``test`` alone.

    Returns
    -------
    paths, note
        As of `training_paths`.

    Raises
    ------
    UsageError
        For anything but paths, such as an array.
    """
    several = [paths] if isinstance(paths, str | Path) else list(paths)
    for path in several:
        if not isinstance(path, str | os.PathLike):
            raise UsageError(
                f"images are given as paths of files and folders. Got {type(path).__name__}.",
                hint="Save an array first: numpy.save('image.npy', array).",
            )
    given = [str(path) for path in several]
    _, note = _narrowed(given, Path(_TEST))
    # Not through Path, which would change what was given, and make a folder of nothing.
    found = [
        os.path.join(path, _TEST) if path and _laid_out(Path(path)) else path  # noqa: PTH118
        for path in given
    ]
    return found, note


def _laid_out(folder: Path) -> bool:
    # Path.is_dir raises for names that are too long, and where it may not look.
    return os.path.isdir(folder / _TRAIN) and os.path.isdir(folder / _TEST)  # noqa: PTH112


def _narrowed(paths: Sequence[str | Path], part: Path) -> tuple[list[Path], str | None]:
    found, narrowed = [], []
    for path in map(Path, paths):
        if _laid_out(path):
            path = path / part
            narrowed.append(path.as_posix())
        found.append(path)
    if not narrowed:
        return found, None
    return found, f"laid out like MVTec AD: only {' and '.join(narrowed)} is used"


def read_mask(file: Path, decoded: Decoded) -> NDArray[np.bool_]:
    """Mask of an image, upright, at the image's own resolution: True where it is anomalous.

    Anything but black is marked (in a JPEG, what is brighter than half). A mask without an
    orientation of its own lies in the pixels of the image as stored.

    Returns
    -------
    ndarray of bool, shape (height, width)

    Raises
    ------
    InputError
        Whose message is the bare reason, without the path.
    """
    opened, least = interest.stored_mask(file)
    picture = opened.picture
    if not isinstance(picture, Image.Image):
        deep = picture != 0
        picture = Image.fromarray((deep.any(2) if deep.ndim == 3 else deep).astype(np.uint8))
    if picture.mode in ("P", "PA", "LA", "RGBA"):  # colours, not their numbers in a palette
        picture = picture.convert("L" if picture.mode == "LA" else "RGB")
    stored, upright = (decoded.width, decoded.height), decoded.shape[::-1]
    turn = opened.pending
    if opened.orientation == 1 and picture.size == stored:
        turn = decoded.orientation
    if turn != 1:
        picture = picture.transpose(images.UPRIGHT[turn])
    if picture.size != upright:
        raise InputError(
            f"mask of {picture.width}x{picture.height} pixels for an image of "
            f"{upright[0]}x{upright[1]}"
        )
    marked = np.asarray(np.asarray(picture) >= least, np.bool_)
    return np.asarray(marked.any(2), np.bool_) if marked.ndim == 3 else marked


def _from_csv(csv: Path, folder: Path | None, masks: Path | None) -> LabelledSet:
    rows = evaluation.read_labels(csv)
    base = csv.parent if folder is None else folder
    matched, missing = evaluation.match(rows, base)
    if not matched:
        raise InputError(
            f"none of the {len(rows)} images named in {csv} exists under {base}.",
            hint="Paths are relative to the CSV, or to IMAGES when that is given.",
        )
    files = [images.named(label.path, file, label.path) for label, file in matched]
    beside = _Masks(masks, files)
    found, lost = [], []
    for (label, _), image in zip(matched, files, strict=True):
        mask = _named(label.mask, (base, csv.parent, masks)) if label.mask else beside.of(image)
        if label.mask and mask is None:
            lost.append(label.mask)
        found.append(Labelled(image, label.anomalous, label.cls, mask))
    return LabelledSet(
        images=tuple(found),
        missing=tuple(label.path for label in missing),
        unlabelled=evaluation.unlabelled(folder, files),
        masks=masks is not None or any(label.mask for label, _ in matched),
        lost=tuple(dict.fromkeys(lost)),
    )


def _from_folders(folder: Path | None, masks: Path | None) -> LabelledSet:
    if folder is None or not (folder / _TEST).is_dir():
        of = "" if folder is None else f" {folder} is not one."
        raise UsageError(
            "eval needs --labels FILE, a CSV with the header path,label, or a folder laid out "
            f"like MVTec AD ({LAYOUT}).{of}"
        )
    files = images.find([folder / _TEST])
    kept = [(image, image.inside.split("/")[0]) for image in files if "/" in image.inside]
    if not kept:
        raise InputError(f"{folder / _TEST} has images, but none in folders of types such as good.")
    beside = _Masks(masks or _folder(folder / _MASKS), [image for image, _ in kept])
    return LabelledSet(
        images=tuple(
            Labelled(image, kind.lower() not in evaluation.NORMAL, kind, beside.of(image))
            for image, kind in kept
        ),
        missing=(),
        unlabelled=len(files) - len(kept),
        masks=beside.folder is not None,
    )


def _folder(path: Path) -> Path | None:
    return path if path.is_dir() else None


def _named(mask: str, places: Sequence[Path | None]) -> Path | None:
    """File that a CSV names, in the first place that has it."""
    candidates = (place / mask for place in places if place is not None)
    return next(filter(evaluation.is_file, candidates), None)


class _Masks:
    """A folder of masks, searched by the names of images."""

    def __init__(self, folder: Path | None, files: Sequence[ImageFile]) -> None:
        self.folder = folder
        parents = {str(PurePosixPath(image.inside).parent) for image in files}
        try:
            self._shared = os.path.commonpath(parents)
        except ValueError:  # absolute paths beside relative ones
            self._shared = ""

    def of(self, image: ImageFile) -> Path | None:
        """Mask of an image, if there is one."""
        if self.folder is None:
            return None
        inside = PurePosixPath(image.inside.replace("\\", "/"))
        for path in (inside, PurePosixPath(os.path.relpath(inside, self._shared or "."))):
            stem = self.folder / path.parent / path.stem
            for name in (f"{stem.name}_mask", stem.name):
                for suffix in (*MASK_SUFFIXES, path.suffix):
                    file = stem.with_name(name + suffix)
                    if evaluation.is_file(file) and not _is_image(file, image):
                        return file
        return None


def _is_image(file: Path, image: ImageFile) -> bool:
    """Whether what was found as a mask is the image itself."""
    mask = images.named("", file, "")
    return mask.page == image.page and mask.file.samefile(image.file)
