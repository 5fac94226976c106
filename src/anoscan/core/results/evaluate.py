"""Results of ``anoscan eval``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from anoscan.core.results.common import ModelReference, Search, Skipped, Threshold, brief


@dataclass(frozen=True, kw_only=True)
class EvalImages:
    """Numbers of images by label; `missing` counts rows of labels without an image file."""

    normal: int
    anomalous: int
    skipped: tuple[Skipped, ...]
    unlabelled: int
    missing: int


@dataclass(frozen=True, kw_only=True)
class Confusion:
    """Numbers of images by label and verdict; an anomalous image is a positive."""

    true_positive: int
    false_positive: int
    false_negative: int
    true_negative: int


@dataclass(frozen=True, kw_only=True)
class AtThreshold:
    """Decisions at the model's threshold; the report's `threshold_uses_labels` says what set it."""

    score: float
    false_alarm_rate: float | None
    recall: float | None
    precision: float | None
    f1: float | None
    confusion: Confusion


@dataclass(frozen=True, kw_only=True)
class BestDice:
    """The best Dice coefficient of any one threshold; no promise, since the same masks chose it."""

    dice: float
    threshold: float
    uses_labels: bool = True


@dataclass(frozen=True, kw_only=True)
class PixelReport:
    """How well anomaly maps find anomalous pixels, at each image's own resolution.

    `aupro` is integrated up to a false-positive rate of `aupro_limit`, and divided by that limit.
    `regions` counts the 8-connected defects of the masks. `undefined` says why a metric is null.
    `without_mask` counts anomalous images that were left out. `skipped` are masks that could not be
    used.
    """

    __repr__ = brief
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
    """Receiver operating characteristic, from a threshold above all scores down."""

    false_alarm_rate: tuple[float, ...]
    recall: tuple[float, ...]


@dataclass(frozen=True, kw_only=True)
class PrecisionRecall:
    """Curve of precision over recall, from the highest threshold down."""

    recall: tuple[float, ...]
    precision: tuple[float, ...]


@dataclass(frozen=True, kw_only=True)
class Histogram:
    """Numbers of images by score and label; `edges` has one number more than there are bins."""

    edges: tuple[float, ...]
    normal: tuple[int, ...]
    anomalous: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class Curves:
    """Curves to plot. Long curves are thinned, but their areas were measured on all points."""

    __repr__ = brief
    roc: Roc
    precision_recall: PrecisionRecall
    scores: Histogram


@dataclass(frozen=True, kw_only=True)
class ClassReport:
    """Metrics of the images of one class of the labels.

    `auroc` compares the anomalous images of the class with its own normal images, or where it has
    none with all; `against` says which. `recall` and `false_alarm_rate` are at the model's own
    threshold.
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

    `difference` is its AUROC minus that of the first model. Its interval comes from a bootstrap in
    which both score the same resampled images. Where it does not hold 0, the difference is not due
    to the choice of images.
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
    """Result of ``anoscan eval``; metrics without a value are null, and `undefined` says why.

    `warning` says why the threshold may not fit, for example with another mapping. `threshold` has
    what the model promises, and `at_threshold` what was measured. `pixel` is null without masks,
    `classes` without classes, `comparison` with one model, and `search` where the encoder gave the
    latents.
    """

    __repr__ = brief
    schema: ClassVar[str] = "anoscan.eval/1"
    model: ModelReference
    images: EvalImages
    auroc: float | None
    auroc_ci95: tuple[float, float] | None
    average_precision: float | None
    undefined: str | None
    threshold: Threshold
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
