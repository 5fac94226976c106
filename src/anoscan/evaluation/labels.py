"""Find labelled images and their masks, by a CSV file or by the names of their folders.

Folders are those of MVTec AD (``train/good``, ``test/<type>``, and
``ground_truth/<type>/<name>_mask.png``), or folders of good and of bad images.
"""

from __future__ import annotations

import csv
import dataclasses
import io
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from anoscan.core import storage
from anoscan.core.errors import InputError, UsageError
from anoscan.core.urls import shown, url_of
from anoscan.images import formats
from anoscan.images.files import ImageFile, find, named
from anoscan.images.globs import is_pattern, matches, root_of
from anoscan.images.layout import LAYOUT, MASKS, TEST
from anoscan.images.places import folders_in, is_file, is_folder, joined, presence

MASK_SUFFIXES = (".png", ".bmp", ".tif", ".tiff")
# Names in lower case of folders whose images are normal or anomalous; `DEFECT` begins a name.
GOOD_FOLDERS = ("good", "ok", "normal", "0")
BAD_FOLDERS = ("bad", "ng", "anomaly", "anomalous", "abnormal", "1")
DEFECT = "defect"


@dataclass(frozen=True)
class Labelled:
    """An image and its label.

    `cls` is its class, such as the kind of its defect. `mask` is the file that marks its anomalous
    pixels, if there is one.
    """

    image: ImageFile
    anomalous: bool
    cls: str | None = None
    mask: Path | None = None


@dataclass(frozen=True)
class LabelledSet:
    """Images with labels.

    Parameters
    ----------
    images : tuple of Labelled
    missing : tuple of str
        Paths that the labels name, but where no image file is.
    unlabelled : int
        Number of images without a label.
    masks : bool
        Whether there are masks, so that pixels can be measured too.
    lost : tuple of str
        Masks that the CSV names, but that are no files.
    training : int
        Number of rows that the CSV gives to the split ``train``; they are left out.
    """

    images: tuple[Labelled, ...]
    missing: tuple[str, ...]
    unlabelled: int
    masks: bool
    lost: tuple[str, ...] = ()
    training: int = 0


def gather(labels: Path | None, folder: Path | None, masks: Path | None) -> LabelledSet:
    """Find labelled images and their masks.

    Parameters
    ----------
    labels : Path, optional
        CSV of labels; see `read_labels`. Without it, `folder` must be laid out like MVTec AD, or
        have folders of good and of bad images.
    folder : Path, optional
        Folder that paths in the CSV are relative to. The default is the CSV's folder, or the
        current one where none of the relative paths is in the CSV's folder. Of a pattern, it is
        the folder that it starts from, and only images that it matches are kept.
    masks : Path, optional
        Folder of masks. A mask has the relative path of its image. Its suffix may differ, and
        ``_mask`` may follow the name. Parent folders that all images share may be left out.

    Raises
    ------
    InputError
        When no labelled image is found, or `masks` has no mask of any.
    UsageError
        When there is no CSV, and the names of the folders say nothing of labels.
    """
    if masks is not None and not is_folder(masks):
        raise InputError(f"the folder of masks {masks} does not exist.")
    chosen = None if folder is None or not is_pattern(folder) else matches(folder)
    folder = folder if chosen is None else root_of(folder or "")
    found = _from_folders(folder, masks) if labels is None else _from_csv(labels, folder, masks)
    if chosen is not None:
        found = _among(found, chosen)
    if masks is not None and not any(item.mask for item in found.images):
        some = next((item for item in found.images if item.anomalous), found.images[0])
        name = PurePosixPath(some.image.inside).stem
        raise InputError(
            f"none of the masks in {masks} has the name of a labelled image.",
            hint=f"A mask has the relative path of its image, and is called {name}.png or "
            f"{name}_mask.png for {some.image.inside!r}.",
        )
    return found


def _among(found: LabelledSet, chosen: Sequence[str]) -> LabelledSet:
    """Return the labelled images that a pattern matched, or that are in a folder that it matched.

    Raises
    ------
    InputError
        When it matched none.
    """
    places = {os.path.realpath(path) for path in chosen}

    def is_chosen(image: ImageFile) -> bool:
        real = Path(os.path.realpath(image.file))
        return not places.isdisjoint(map(str, (real, *real.parents)))

    images = tuple(item for item in found.images if is_chosen(item.image))
    if not images:
        raise InputError("the pattern matches none of the labelled images.")
    return dataclasses.replace(found, images=images)


def _from_csv(csv: Path, folder: Path | None, masks: Path | None) -> LabelledSet:
    every = read_labels(csv)
    rows = [row for row in every if not row.training]
    if not rows:
        raise InputError(
            f"all {len(every)} rows of {csv} are of the split 'train', which is left out.",
            hint="Give the rows to measure another split, such as test.",
        )
    base = csv.parent if folder is None else folder
    matched, missing = match(rows, base)
    if folder is None and not any(not Path(label.path).is_absolute() for label, _ in matched):
        # A browser saves what was marked in a report into a folder of its own.
        here, others = match(rows, Path())
        if len(here) > len(matched):
            base, matched, missing = Path(), here, others
    if not matched:
        here_too = " or in the current folder" if folder is None else ""
        raise InputError(
            f"none of the {len(rows)} images named in {csv} exists under {base}{here_too}.",
            hint="Paths are relative to the CSV, or to IMAGES, a folder; --model names a model. "
            "Those marked in a report are relative to the folder where anoscan score was called.",
        )
    files = [named(label.path, file, label.path) for label, file in matched]
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
        unlabelled=unlabelled(folder, files),
        masks=masks is not None or any(label.mask for label, _ in matched),
        lost=tuple(dict.fromkeys(lost)),
        training=len(every) - len(rows),
    )


def _from_folders(folder: Path | None, masks: Path | None) -> LabelledSet:
    if folder is None or not is_folder(folder / TEST):
        return _good_and_bad(folder, masks)
    files = find([folder / TEST])
    kept = [(image, image.inside.split("/")[0]) for image in files if "/" in image.inside]
    if not kept:
        raise InputError(f"{folder / TEST} has images, but none in folders of types such as good.")
    beside = _Masks(masks or _folder(folder / MASKS), [image for image, _ in kept])
    return LabelledSet(
        images=tuple(
            Labelled(image, kind.lower() not in NORMAL, kind, beside.of(image))
            for image, kind in kept
        ),
        missing=(),
        unlabelled=len(files) - len(kept),
        masks=beside.folder is not None,
    )


def _good_and_bad(folder: Path | None, masks: Path | None) -> LabelledSet:
    """Label images by the folder of `folder` that they are in; bad folders are classes."""
    labels = {} if folder is None else _labelled_folders(folder)
    if folder is None or len(set(labels.values())) < 2:
        good, bad = "|".join(GOOD_FOLDERS), "|".join((*BAD_FOLDERS, f"{DEFECT}*"))
        raise UsageError(
            "eval needs --labels FILE, a CSV with the header path,label; or a folder laid out like "
            f"MVTec AD ({LAYOUT}); or one with a folder {good} and a folder {bad}."
            f"{'' if folder is None else _lacking(folder, labels)}"
        )
    beside = masks or _folder(folder / MASKS)
    files = find([folder], [place for place in (folder / MASKS, masks) if place is not None])
    kept = [(image, kind) for image in files if (kind := image.inside.partition("/")[0]) in labels]
    if {labels[kind] for _, kind in kept} != {True, False}:
        raise InputError(
            f"{folder} has images in its folders of {'bad' if labels[kept[0][1]] else 'good'} "
            "images only."
            if kept
            else f"{folder} has no image in its folders {', '.join(sorted(labels))}."
        )
    several = sum(labels.values()) > 1
    found = _Masks(beside, [image for image, _ in kept])
    return LabelledSet(
        images=tuple(
            Labelled(image, labels[kind], kind if several else None, found.of(image))
            for image, kind in kept
        ),
        missing=(),
        unlabelled=len(files) - len(kept),
        masks=beside is not None,
    )


def _labelled_folders(folder: Path) -> dict[str, bool]:
    """Return the folders in `folder` whose name is a label, and whether they are of bad images."""
    labels = {}
    for folder_name in folders_in(folder):
        name = folder_name.lower()
        bad = name in BAD_FOLDERS or name.startswith(DEFECT)
        if bad or name in GOOD_FOLDERS:
            labels[folder_name] = bad
    return labels


def _lacking(folder: Path, labels: dict[str, bool]) -> str:
    if not is_folder(folder):
        return f" {folder} is no folder."
    if not labels:
        return f" {folder} is none of these."
    kinds = ("bad", "good") if any(labels.values()) else ("good", "bad")
    return f" {folder} has a folder of {kinds[0]} images, but none of {kinds[1]} ones."


def _folder(path: Path) -> Path | None:
    return path if is_folder(path) else None


def _named(mask: str, places: Sequence[Path | None]) -> Path | None:
    """Return the mask file that a CSV names, in the first folder that has it, or None."""
    candidates = (joined(place, mask) for place in places if place is not None)
    return next(filter(is_file, filter(None, candidates)), None)


class _Masks:
    """A folder of masks, which finds the mask of an image by the image's name.

    The parent folders that all of `files` (the images) share may be missing in `folder`.
    """

    def __init__(self, folder: Path | None, files: Sequence[ImageFile]) -> None:
        self.folder = folder
        self._is_file = is_file if folder is None else presence(folder)
        parents = {str(PurePosixPath(image.inside).parent) for image in files}
        try:
            self._shared = os.path.commonpath(parents)
        except ValueError:  # some paths are absolute and some are relative
            self._shared = ""

    def of(self, image: ImageFile) -> Path | None:
        """Return the file of an image's mask, or None where there is none."""
        if self.folder is None:
            return None
        inside = PurePosixPath(image.inside.replace("\\", "/"))
        for path in (inside, PurePosixPath(os.path.relpath(inside, self._shared or "."))):
            stem = self.folder / path.parent / path.stem
            for name in (f"{stem.name}_mask", stem.name):
                for suffix in (*MASK_SUFFIXES, path.suffix):
                    file = stem.with_name(name + suffix)
                    if self._is_file(file) and not _is_image(file, image):
                        return file
        return None


def _is_image(file: Path, image: ImageFile) -> bool:
    """Say whether the file that was found as a mask is the image itself."""
    mask = named("", file, "")
    if mask.remote or image.remote:
        return (mask.file, mask.page) == (image.file, image.page)
    return mask.page == image.page and mask.file.samefile(image.file)


COLUMNS = {
    "path": ("path", "image_path", "image", "file", "filename"),
    "label": ("label", "target", "y"),
    "mask": ("mask", "mask_path"),
    "class": ("class",),
    "split": ("split",),
}
# A CSV of anomalib has label_index for 0 or 1. Its label is the type, and its path may be a folder.
_INDEX = "label_index"
_OF_ANOMALIB = COLUMNS | {
    "path": ("image_path", *COLUMNS["path"]),
    "label": (_INDEX,),
    "class": ("class", "label"),
}
_TRAIN = "train"
ANOMALOUS = frozenset(("1", "1.0", "true", "positive", "anomaly", "anomalous", "abnormal")).union(
    ("bad", "defect", "defective", "ng", "nok", "fail")
)
NORMAL = frozenset(("0", "0.0", "false", "negative", "normal", "good", "ok", "pass"))

_DELIMITERS = ",;\t"
_BAD_ROWS_SHOWN = 5
_HINT = (
    "A labels file is a UTF-8 CSV with the header path,label and labels 1/0, anomaly/normal, "
    "bad/good, ng/ok or defect/pass."
)


@dataclass(frozen=True)
class Label:
    """One row of a labels file: its line (from 1), and its path, mask and class as written.

    `training` says whether the row has the split ``train``.
    """

    line: int
    path: str
    anomalous: bool
    mask: str | None = None
    cls: str | None = None
    training: bool = False


def read_labels(file: Path) -> list[Label]:
    """Read the labels of a CSV, in the order of the file; there is at least one.

    The columns are ``path`` and ``label``, and optionally ``mask``, ``class`` and ``split``;
    `COLUMNS` has other names for them. A CSV of anomalib is read too: its ``label_index`` is the
    label, and its ``label`` the class. Columns come in any order and case, separated by commas,
    semicolons or tabs. Blank rows are skipped. So are rows that repeat the path and the label of an
    earlier row.

    Raises
    ------
    InputError
        When the file cannot be read as a CSV of labels. The message has the lines of bad rows.
    """
    rows = _rows(file)
    columns = _columns(file, rows)
    labels: dict[str, Label] = {}
    problems: list[str] = []
    width = len(rows[0][1])
    for line, cells in rows[1:]:
        label = _label(line, cells, columns, width)
        if isinstance(label, str):
            problems.append(f"line {line}: {label}")
            continue
        first = labels.setdefault(os.path.normpath(label.path), label)
        if first.anomalous != label.anomalous:
            problems.append(
                f"line {line}: {label.path!r} is labelled otherwise on line {first.line}"
            )
    if problems:
        shown = "; ".join(problems[:_BAD_ROWS_SHOWN])
        more = len(problems) - _BAD_ROWS_SHOWN
        rest = f"; and {more} more" if more > 0 else ""
        raise InputError(f"bad rows in {file}: {shown}{rest}.", hint=_HINT)
    if not labels:
        raise InputError(f"{file} has a header but no labels.", hint=_HINT)
    return list(labels.values())


def match(labels: list[Label], base: Path) -> tuple[list[tuple[Label, Path]], list[Label]]:
    r"""Return the labels with the image files that they name, and the labels without such a file.

    Relative paths start from `base`. A path with ``\`` that names no file is tried again with
    ``/``.
    """
    found, missing = [], []
    present = presence(base)
    for label in labels:
        named_so = (label.path, label.path.replace("\\", "/"))
        candidates = filter(None, (joined(base, name) for name in named_so))
        path = next(filter(present, candidates), None)
        if path is None:
            missing.append(label)
        else:
            found.append((label, path))
    return found, missing


def _rows(file: Path) -> list[tuple[int, list[str]]]:
    """Return the rows that are not blank, header first, each with the line that it starts on."""
    text = _text(file)
    first_line = next((line for line in text.splitlines() if line.strip(" \t,;")), "")
    delimiter = max(_DELIMITERS, key=first_line.count)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter)
    rows, start = [], 1
    try:
        for cells in reader:
            rows.append((start, [cell.strip() for cell in cells]))
            start = reader.line_num + 1
    except csv.Error as error:
        raise InputError(
            f"{file} cannot be read as CSV from line {start} on: {error}.",
            hint="A quotation mark without its partner is the usual reason.",
        ) from error
    if filled := [row for row in rows if any(row[1])]:
        return filled
    raise InputError(f"{file} is empty.", hint=_HINT)


def _text(file: Path) -> str:
    try:
        if (url := url_of(file)) is not None:
            return _fetched(url).decode("utf-8-sig")
        return file.read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise InputError(
            f"cannot read the labels {file}: {error.strerror or error}.", hint=_HINT
        ) from error
    except UnicodeDecodeError as error:
        raise InputError(
            f"{file} is not UTF-8 text (byte {error.start + 1}).",
            hint="Save it as CSV UTF-8; spreadsheets offer that under Save as.",
        ) from error


def _fetched(url: str) -> bytes:
    try:
        with storage.copied(storage.RemoteFile(url, None, None)) as copy:
            return copy.read_bytes()
    except InputError as error:
        raise InputError(
            f"cannot read the labels {shown(url)}: {error.message}.", hint=error.hint or _HINT
        ) from None


def _columns(file: Path, rows: list[tuple[int, list[str]]]) -> dict[str, int]:
    header = [cell.lower().replace(" ", "_").replace("-", "_") for cell in rows[0][1]]
    columns = {}
    for column, aliases in (_OF_ANOMALIB if _INDEX in header else COLUMNS).items():
        known = [alias for alias in aliases if alias in header]
        if known:
            columns[column] = header.index(known[0])
        elif column in ("path", "label"):
            raise InputError(
                f"{file} has no column {column!r} in its header (line {rows[0][0]}).", hint=_HINT
            )
    return columns


def _label(line: int, cells: list[str], columns: dict[str, int], width: int) -> Label | str:
    """Return the label of a row, or as text what is wrong with the row."""
    if any(cells[width:]):
        return f"{len(cells)} cells where the header has {width}"
    cells = cells + [""] * (width - len(cells))
    row = {column: cells[index] for column, index in columns.items()}
    word = row["label"].lower()
    if not row["path"]:
        return "no path"
    if word not in ANOMALOUS | NORMAL:
        return f"unknown label {row['label'][:40]!r}"
    return Label(
        line=line,
        path=row["path"],
        anomalous=word in ANOMALOUS,
        mask=row.get("mask") or None,
        cls=row.get("class") or None,
        training=row.get("split", "").rpartition(".")[2].lower() == _TRAIN,
    )


def unlabelled(folder: Path | None, labelled: Sequence[ImageFile]) -> int:
    """Count the images under `folder` that no label names; 0 where images cannot be listed.

    Without a folder, images in the same folders as labelled images are counted. Folders below those
    are left out: they may hold maps, other images, or everything a user has.
    """
    try:
        if folder is None:
            folders = {image.file.parent for image in labelled}
            present = find([file for beside in folders for file in _images_in(beside)])
        else:
            present = find([folder])
    except (InputError, OSError):
        return 0
    named = {(image.file.resolve(), image.page) for image in labelled}
    return sum((image.file.resolve(), image.page) not in named for image in present)


def _images_in(folder: Path) -> list[Path]:
    files = (file for file in folder.iterdir() if not file.name.startswith("."))
    return [file for file in files if formats.is_named_like_one(file) and file.is_file()]
