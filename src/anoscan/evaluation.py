"""Labels, and how well scores agree with them.

Labels measure a model; nothing here trains one or sets its threshold. Scores: higher is more
anomalous.
"""

from __future__ import annotations

import csv
import io
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from anoscan import formats
from anoscan.errors import InputError
from anoscan.images import ImageFile, find, page_of
from anoscan.results import AtThreshold, Confusion, Curves, Histogram, PrecisionRecall, Roc

COLUMNS = {
    "path": ("path", "image_path", "image", "file", "filename"),
    "label": ("label", "target", "y"),
    "mask": ("mask", "mask_path"),
    "class": ("class",),
}
ANOMALOUS = frozenset(("1", "1.0", "true", "positive", "anomaly", "anomalous", "abnormal")).union(
    ("bad", "defect", "defective", "ng", "nok", "fail")
)
NORMAL = frozenset(("0", "0.0", "false", "negative", "normal", "good", "ok", "pass"))

_DELIMITERS = ",;\t"
_CURVE_POINTS = 200
_BINS = 10, 60
_BAD_ROWS_SHOWN = 5
_HINT = (
    "A labels file is a UTF-8 CSV with the header path,label and labels 1/0, anomaly/normal, "
    "bad/good, ng/ok or defect/pass."
)


@dataclass(frozen=True)
class Label:
    """One row of a labels file.

    `line` counts from 1, the header included; `path` and `mask` are as written in the file;
    `cls` is the kind of defect.
    """

    line: int
    path: str
    anomalous: bool
    mask: str | None = None
    cls: str | None = None


@dataclass(frozen=True, kw_only=True)
class Detection:
    """How well scores order images; without a value all are None and `undefined` says why."""

    auroc: float | None
    auroc_ci95: tuple[float, float] | None
    average_precision: float | None
    undefined: str | None


@dataclass(frozen=True, kw_only=True)
class Difference:
    """How much more AUROC one model has than another, with a 95 % interval."""

    value: float
    ci95: tuple[float, float]


def read_labels(file: Path) -> list[Label]:
    """Read a labels CSV.

    The columns are ``path`` and ``label``, and optionally ``mask`` and ``class``, under the names
    of `COLUMNS`, in any order and case, separated by commas, semicolons or tabs. Blank rows are
    passed over, and so is a row that repeats the path and the label of an earlier one.

    Returns
    -------
    list of Label
        In the order of the file; never empty.

    Raises
    ------
    InputError
        When the file cannot be read as such; bad rows are named by line number.
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
    r"""Find the images that labels speak of.

    Parameters
    ----------
    labels : list of Label
        A path with ``\`` that names no file is tried with ``/``.
    base : Path
        Folder that relative paths start from.

    Returns
    -------
    found : list of (Label, Path)
        In the order of the labels.
    missing : list of Label
        Labels without an image file.
    """
    found, missing = [], []
    for label in labels:
        candidates = (base / label.path, base / label.path.replace("\\", "/"))
        path = next(filter(is_file, candidates), None)
        if path is None:
            missing.append(label)
        else:
            found.append((label, path))
    return found, missing


def detection(
    scores: NDArray[np.floating],
    anomalous: NDArray[np.bool_],
    *,
    seed: int = 0,
    resamples: int = 1000,
) -> Detection:
    """Measure how well scores put anomalous images above normal ones.

    Parameters
    ----------
    scores : ndarray of float, shape (n,)
        Finite; higher is more anomalous.
    anomalous : ndarray of bool, shape (n,)
        Labels.
    seed : int
        Of the resampling.
    resamples : int
        Bootstrap samples behind the interval; 0 leaves it out.

    Returns
    -------
    Detection
        AUROC, its 95 % interval (percentile bootstrap, normal and anomalous images resampled
        apart), and average precision. The interval says how much other images of the same kinds
        would change the AUROC. Where the classes are separated entirely every resample is too, and
        the other end is Newcombe's (see `_of_separated`).

    Raises
    ------
    ValueError
        When shapes differ or a score is not finite.
    """
    from sklearn.metrics import average_precision_score, roc_auc_score

    scores, anomalous = _checked(scores, anomalous)
    if reason := _undefined(anomalous):
        return Detection(auroc=None, auroc_ci95=None, average_precision=None, undefined=reason)
    auroc = float(roc_auc_score(anomalous, scores))
    interval = None
    if resamples:
        samples = _bootstrap(scores, anomalous, np.random.default_rng(seed), resamples)
        low, high = (float(value) for value in np.quantile(samples, (0.025, 0.975)))
        # Few resamples, or rounding, can leave the estimate outside.
        interval = min(low, auroc), max(high, auroc)
        normal, odd = scores[~anomalous], scores[anomalous]
        if normal.max() < odd.min():
            interval = _of_separated(normal.size, odd.size), 1.0
        elif odd.max() < normal.min():
            interval = 0.0, 1 - _of_separated(normal.size, odd.size)
    return Detection(
        auroc=auroc,
        auroc_ci95=interval,
        average_precision=min(float(average_precision_score(anomalous, scores)), 1.0),  # rounded
        undefined=None,
    )


def at_threshold(
    scores: NDArray[np.floating], anomalous: NDArray[np.bool_], threshold: float
) -> AtThreshold:
    """Measure the decisions "anomalous when the score is above the threshold".

    Parameters
    ----------
    scores : ndarray of float, shape (n,)
        Finite; a score equal to the threshold is normal.
    anomalous : ndarray of bool, shape (n,)
        Labels.
    threshold : float
        Set without these labels.

    Returns
    -------
    AtThreshold
        `false_alarm_rate` is None without normal images, `precision` where nothing is flagged,
        `recall` and `f1` without anomalous images.

    Raises
    ------
    ValueError
        When shapes differ or a score is not finite.
    """
    from sklearn.metrics import precision_recall_fscore_support

    scores, anomalous = _checked(scores, anomalous)
    flagged = scores > threshold
    precision, recall, f1 = 0.0, 0.0, 0.0
    if anomalous.size:
        precision, recall, f1, _ = precision_recall_fscore_support(
            anomalous, flagged, average="binary", zero_division=0.0
        )
    normal = ~anomalous
    return AtThreshold(
        score=float(threshold),
        false_alarm_rate=float(flagged[normal].mean()) if normal.any() else None,
        recall=float(recall) if anomalous.any() else None,
        precision=float(precision) if flagged.any() else None,
        f1=float(f1) if anomalous.any() else None,
        confusion=Confusion(
            true_positive=int((flagged & anomalous).sum()),
            false_positive=int((flagged & normal).sum()),
            false_negative=int((~flagged & anomalous).sum()),
            true_negative=int((~flagged & normal).sum()),
        ),
    )


def difference(
    scores: NDArray[np.floating],
    base: NDArray[np.floating],
    anomalous: NDArray[np.bool_],
    *,
    seed: int = 0,
    resamples: int = 1000,
) -> Difference | None:
    """AUROC of scores less that of `base`, of the same images; None where labels define neither.

    Parameters
    ----------
    scores, base : ndarray of float, shape (n,)
    anomalous : ndarray of bool, shape (n,)
    seed, resamples : int
        Of the paired percentile bootstrap: both AUROCs are of the same resampled images, so that
        what is hard for both models cancels out.
    """
    scores, anomalous = _checked(scores, anomalous)
    base, _ = _checked(base, anomalous)
    if _undefined(anomalous):
        return None
    # Draws depend on the generator and the numbers of images alone: the same seed pairs them.
    one, other = (
        _bootstrap(column, anomalous, np.random.default_rng(seed), resamples)
        for column in (scores, base)
    )
    value = (detection(scores, anomalous, resamples=0).auroc or 0.0) - (
        detection(base, anomalous, resamples=0).auroc or 0.0
    )
    low, high = (float(end) for end in np.quantile(one - other, (0.025, 0.975)))
    return Difference(value=value, ci95=(min(low, value), max(high, value)))


def curves(scores: NDArray[np.floating], anomalous: NDArray[np.bool_]) -> Curves | None:
    """ROC, precision by recall, and histograms of the scores; None unless there are both classes.

    At most about 200 points of each curve are kept.
    """
    from sklearn.metrics import precision_recall_curve, roc_curve

    scores, anomalous = _checked(scores, anomalous)
    if _undefined(anomalous):
        return None
    rate, recall, _ = roc_curve(anomalous, scores)
    precision, found, _ = precision_recall_curve(anomalous, scores, drop_intermediate=True)
    bins = min(max(math.ceil(math.sqrt(scores.size)), _BINS[0]), _BINS[1])
    edges = np.histogram_bin_edges(scores, bins)
    normal, positive = (
        np.histogram(scores[chosen], edges)[0].tolist() for chosen in (~anomalous, anomalous)
    )
    return Curves(
        roc=Roc(false_alarm_rate=_thinned(rate), recall=_thinned(recall)),
        precision_recall=PrecisionRecall(
            recall=_thinned(found[::-1]), precision=_thinned(precision[::-1])
        ),
        scores=Histogram(
            edges=tuple(edges.tolist()), normal=tuple(normal), anomalous=tuple(positive)
        ),
    )


def _thinned(values: NDArray[np.floating]) -> tuple[float, ...]:
    count = min(len(values), _CURVE_POINTS)
    return tuple(values[np.linspace(0, len(values) - 1, count).round().astype(int)].tolist())


def _rows(file: Path) -> list[tuple[int, list[str]]]:
    """Rows that are not blank, header first, each with the line it starts on."""
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


def _columns(file: Path, rows: list[tuple[int, list[str]]]) -> dict[str, int]:
    header = [cell.lower().replace(" ", "_").replace("-", "_") for cell in rows[0][1]]
    columns = {}
    for column, aliases in COLUMNS.items():
        known = [alias for alias in aliases if alias in header]
        if known:
            columns[column] = header.index(known[0])
        elif column in ("path", "label"):
            raise InputError(
                f"{file} has no column {column!r} in its header (line {rows[0][0]}).", hint=_HINT
            )
    return columns


def _label(line: int, cells: list[str], columns: dict[str, int], width: int) -> Label | str:
    """Label of a row, or what is wrong with the row."""
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
    )


def is_file(path: Path) -> bool:
    """Whether a path, which may be nonsense, names a file."""
    try:
        return path.is_file() or page_of(path) is not None
    except (OSError, ValueError):  # longer than a path can be, or not permitted
        return False


def _checked(
    scores: NDArray[np.floating], anomalous: NDArray[np.bool_]
) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    values = np.asarray(scores, dtype=np.float64)
    truth = np.asarray(anomalous, dtype=np.bool_)
    if values.ndim != 1 or values.shape != truth.shape:
        raise ValueError(f"scores {values.shape} and labels {truth.shape} must be (n,) alike")
    if not np.isfinite(values).all():
        raise ValueError("scores must be finite")
    return values, truth


def _undefined(anomalous: NDArray[np.bool_]) -> str | None:
    if not anomalous.size:
        return "no labelled image could be scored: AUROC needs both classes"
    if anomalous.all():
        return "only anomalous images are labelled: AUROC needs both classes"
    if not anomalous.any():
        return "only normal images are labelled: AUROC needs both classes"
    return None


def _bootstrap(
    scores: NDArray[np.float64],
    anomalous: NDArray[np.bool_],
    generator: np.random.Generator,
    resamples: int,
) -> NDArray[np.float64]:
    """AUROC of each of `resamples` samples with replacement, the classes drawn apart."""
    # Ranks instead of scores: counting them replaces a sort for every sample.
    distinct, ranks = np.unique(scores, return_inverse=True)
    normal, positive = ranks[~anomalous], ranks[anomalous]

    def counts(ranks: NDArray[np.intp]) -> NDArray[np.intp]:
        drawn = ranks[generator.integers(ranks.size, size=ranks.size)]
        return np.bincount(drawn, minlength=distinct.size)

    return np.array([_auroc(counts(normal), counts(positive)) for _ in range(resamples)])


def _of_separated(normal: int, anomalous: int) -> float:
    """Lower end of the 95 % interval of an AUROC of 1, of so many images of each class.

    The smallest value from which 1 is 1.96 standard errors away, with the standard error of that
    value: method 5 of Newcombe 2006 (Statistics in Medicine 25:559-573), which is Hanley and
    McNeil's variance with both numbers of images replaced by their mean.
    """
    from scipy.optimize import brentq

    others = (normal + anomalous) / 2 - 1

    def beyond(value: float) -> float:
        spread = (1 - value) / (2 - value) + value / (1 + value)
        variance = value * (1 - value) * (1 + others * spread) / (normal * anomalous)
        return float((1 - value) ** 2 - 1.96**2 * variance)

    # At 1 both sides vanish; just below it the variance is the greater, for any numbers of images.
    return float(brentq(beyond, 0, 1 - 1e-9))


def _auroc(normal: NDArray[np.intp], anomalous: NDArray[np.intp]) -> float:
    """Share of (normal, anomalous) pairs in order, ties half, from counts by rising score."""
    # Twice the number of pairs, to stay in whole numbers.
    below = 2 * np.cumsum(normal) - normal
    return float(below @ anomalous / (2 * normal.sum() * anomalous.sum()))


def aurocs(
    columns: dict[str, np.ndarray], anomalous: np.ndarray
) -> dict[str, dict[str, float | None]]:
    """AUROC of each column of scores (n,) by name; None where the labels do not define it."""
    return {
        name: {"auroc": detection(scores, anomalous, resamples=0).auroc}
        for name, scores in columns.items()
    }


def unlabelled(folder: Path | None, labelled: Sequence[ImageFile]) -> int:
    """Images under `folder` that no label names.

    Without one, those beside labelled images: not in folders below, where maps, other images, or
    all that somebody has may lie.
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
