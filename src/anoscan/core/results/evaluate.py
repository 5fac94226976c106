"""Results of ``anoscan eval``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from anoscan.core.results.common import ModelReference, Search, Skipped


@dataclass(frozen=True, kw_only=True)
class EvalImages:
    """How many labelled images there were. `missing` are label rows without an image file."""

    normal: int
    anomalous: int
    skipped: tuple[Skipped, ...]
    unlabelled: int
    missing: int


@dataclass(frozen=True, kw_only=True)
class Confusion:
    """How many images of each label got each verdict; anomalous is positive."""

    true_positive: int
    false_positive: int
    false_negative: int
    true_negative: int


@dataclass(frozen=True, kw_only=True)
class AtThreshold:
    """Decisions at the model's own threshold, set without labels unless `threshold_uses_labels`."""

    score: float
    false_alarm_rate: float | None
    recall: float | None
    precision: float | None
    f1: float | None
    confusion: Confusion


@dataclass(frozen=True, kw_only=True)
class BestDice:
    """The best Dice coefficient of any one threshold of the anomaly maps.

    The threshold was chosen with the very masks it is measured on, so this is no promise.
    """

    dice: float
    threshold: float
    uses_labels: bool = True


@dataclass(frozen=True, kw_only=True)
class PixelReport:
    """How well anomaly maps find anomalous pixels, at each image's own resolution.

    `aupro` is normalised: integrated up to a false-positive rate of `aupro_limit`, and divided by
    it. `regions` are 8-connected. `without_mask` counts anomalous images left out for want of a
    mask; `skipped` are masks that could not be used.
    """

    auroc: float | None
    average_precision: float | None
    aupro: float | None
    aupro_limit: float
    best_dice: BestDice | None
    undefined: str | None
    images: int
    regions: int
    pixels: int
    anomalous_pixels: int
    without_mask: int = 0
    skipped: tuple[Skipped, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Roc:
    """Receiver operating characteristic, from the highest threshold down; it starts above all."""

    false_alarm_rate: tuple[float, ...]
    recall: tuple[float, ...]


@dataclass(frozen=True, kw_only=True)
class PrecisionRecall:
    """Precision by recall, from the highest threshold down."""

    recall: tuple[float, ...]
    precision: tuple[float, ...]


@dataclass(frozen=True, kw_only=True)
class Histogram:
    """Images by score and label; `edges` has one number more than there are bins."""

    edges: tuple[float, ...]
    normal: tuple[int, ...]
    anomalous: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class Curves:
    """What a plot needs. Long curves are thinned; their areas are measured on all points."""

    roc: Roc
    precision_recall: PrecisionRecall
    scores: Histogram


@dataclass(frozen=True, kw_only=True)
class ClassReport:
    """Images of one class of the labels.

    `auroc` holds its anomalous images against its own normal images; where it has none, against
    all normal images. `recall` and `false_alarm_rate` are those of the class alone, at the model's
    own threshold.
    """

    name: str | None
    normal: int
    anomalous: int
    against: Literal["own normals", "all normals"]
    auroc: float | None
    average_precision: float | None
    false_alarm_rate: float | None
    recall: float | None
    pixel: PixelReport | None


@dataclass(frozen=True, kw_only=True)
class ComparedModel:
    """One of several models, on the images that all of them could read.

    `difference` is its AUROC less that of the first model. The interval is that of a bootstrap in
    which both score the same resampled images: without 0 in it, the difference is no accident of
    the images drawn.
    """

    model: ModelReference
    images: int
    auroc: float | None
    auroc_ci95: tuple[float, float] | None
    average_precision: float | None
    difference: float | None
    difference_ci95: tuple[float, float] | None
    at_threshold: AtThreshold
    pixel: PixelReport | None
    curves: Curves | None


@dataclass(frozen=True, kw_only=True)
class EvalReport:
    """Result of ``anoscan eval``; metrics without a value are null and `undefined` says why.

    `warning` says why the threshold may not fit images that were mapped like this. `pixel` is null
    without masks, `classes` without classes, `comparison` with one model.
    """

    schema: ClassVar[str] = "anoscan.eval/1"
    model: ModelReference
    images: EvalImages
    auroc: float | None
    auroc_ci95: tuple[float, float] | None
    average_precision: float | None
    undefined: str | None
    at_threshold: AtThreshold
    baselines: dict[str, dict[str, float | None]]
    terms: dict[str, dict[str, float | None]]
    pixel: PixelReport | None = None
    classes: tuple[ClassReport, ...] | None = None
    curves: Curves | None = None
    comparison: tuple[ComparedModel, ...] | None = None
    mapping: str = "encoder"
    search: Search | None = None
    warning: str | None = None
    threshold_uses_labels: bool = False
