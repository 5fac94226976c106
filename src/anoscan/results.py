"""What the commands return: typed results whose fields are the fields of the JSON documents.

Every document carries ``schema``; a breaking change raises its number. Scores: higher is more
anomalous, everywhere.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, fields, is_dataclass
from typing import Any, ClassVar, Literal

Verdict = Literal["normal", "anomalous"]
Health = Literal["ok", "warn", "fail"]


@dataclass(frozen=True, kw_only=True)
class Skipped:
    """A file that could not be read, and why."""

    path: str
    reason: str


@dataclass(frozen=True, kw_only=True)
class ModelReference:
    """Which model gave a result. `sha256` is that of the whole model file."""

    name: str
    path: str
    sha256: str


@dataclass(frozen=True, kw_only=True)
class TrainedModel(ModelReference):
    """A model just trained, with what it is."""

    architecture: str
    objective: str
    encoder: str
    mapping: str
    size: int
    patch_size: int | None
    channels: int
    latent_dim: int


@dataclass(frozen=True, kw_only=True)
class HealthCheck:
    """One check of a training run; `message` says what follows from it."""

    name: str
    verdict: Health
    value: float | None
    message: str


@dataclass(frozen=True, kw_only=True)
class HealthReport:
    """The worst verdict of the checks, and the checks."""

    verdict: Health
    checks: tuple[HealthCheck, ...]


@dataclass(frozen=True, kw_only=True)
class TrainImages:
    """What became of the images of the training folder.

    `dropped` are suspects: networks saw them, but what counts as usual was fitted without.
    `patches` counts the parts of them that were trained on; None for whole images.
    """

    found: int
    trained: int
    held_out: int
    dropped: int = 0
    patches: int | None
    skipped: tuple[Skipped, ...]


@dataclass(frozen=True, kw_only=True)
class SelfTestCell:
    """Synthetic defects of one kind and size (pixels of what the networks see).

    `auroc` and `pixel_auroc` have a figure for ``anoscan`` and one for each baseline.
    """

    kind: str
    size: int
    images: int
    auroc: dict[str, float]
    pixel_auroc: dict[str, float]


@dataclass(frozen=True, kw_only=True)
class SelfTest:
    """What a model sees of synthetic defects in held-out normals: an estimate without labels.

    `side` is that of the images as the networks see them. `auroc` and `pixel_auroc` are means over
    the cells, empty when no defect could be made; `whole_auroc` is of images bent as a whole.
    Defects are seen from `sees_from` pixels on, null when not at all. `findings` say so in words,
    and what follows.
    """

    defects: str = "synthetic"
    normals: int
    side: int
    auroc: dict[str, float]
    pixel_auroc: dict[str, float]
    whole_auroc: dict[str, float]
    sees_from: float | None
    findings: tuple[str, ...]
    cells: tuple[SelfTestCell, ...]


@dataclass(frozen=True, kw_only=True)
class TrainReport:
    """Result of ``anoscan train``.

    `tracking` is the folder with the losses and pictures of the training; None where it could not
    be written.
    """

    schema: ClassVar[str] = "anoscan.train/1"
    model: TrainedModel
    images: TrainImages
    images_shown: dict[str, int]
    seconds: dict[str, float]
    health: HealthReport
    self_test: SelfTest | None = None
    tracking: str | None
    device: str
    precision: str
    seed: int
    anoscan_version: str


@dataclass(frozen=True, kw_only=True)
class Threshold:
    """The score above which an image is called anomalous.

    `uses_labels` says whether labelled anomalies decided the rate (``anoscan calibrate --labels``).
    `false_alarm_rate` is the rate asked for; `effective_rate` the one that can be promised with
    this many calibration images (never below 1 / (n + 1)).
    """

    score: float
    false_alarm_rate: float
    effective_rate: float
    calibration_images: int
    warning: str | None
    uses_labels: bool = False


@dataclass(frozen=True, kw_only=True)
class Region:
    """A box in pixels of the query image as stored, with the peak of the anomaly map inside.

    `area` is the number of pixels of the image in the region; `p_value` the share of held-out
    normals, and this image, whose map has such a peak anywhere.
    Both are null in results that older versions saved.
    """

    x: int
    y: int
    width: int
    height: int
    score: float
    area: int | None = None
    p_value: float | None = None


@dataclass(frozen=True, kw_only=True)
class Neighbour:
    """A normal training image, and how far away it lies in the encoder's latent space."""

    path: str
    distance: float


@dataclass(frozen=True, kw_only=True)
class ImageScore:
    """One query image. `rank` 1 is the most anomalous; null while streaming.

    `percentiles` say of each term which share of the calibration images, in percent, has less of
    it. `mismatch` says what sets the image apart from all normal ones but for its content, and
    does not decide the verdict. `nearest` are the normal images most like it, where asked for.
    `maps` are the files written of its anomaly map, by their form; null where none was asked for.
    """

    rank: int | None
    path: str
    score: float
    p_value: float
    q_value: float | None
    verdict: Verdict
    terms: dict[str, float]
    regions: tuple[Region, ...]
    residual: str | None
    percentiles: dict[str, float] = field(default_factory=dict)
    mismatch: tuple[str, ...] | None = None
    nearest: tuple[Neighbour, ...] | None = None
    maps: dict[str, str] | None = None


@dataclass(frozen=True, kw_only=True)
class Search:
    """How latents were searched for; with the model, all that repeating the search needs."""

    steps: int
    discrimination_loss: str
    seed: int


@dataclass(frozen=True, kw_only=True)
class ScoreReport:
    """Result of ``anoscan score``; `score` and `mapping` say how images were scored.

    `search` is None where the encoder gave the latents.

    `warning` says so when nearly all images are anomalous, which hardly ever is the truth.
    """

    schema: ClassVar[str] = "anoscan.score/1"
    model: ModelReference
    score: str
    mapping: str
    threshold: Threshold
    counts: dict[str, int]
    images: tuple[ImageScore, ...]
    skipped: tuple[Skipped, ...]
    warning: str | None = None
    search: Search | None = None


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


@dataclass(frozen=True, kw_only=True)
class DemoReport:
    """Result of ``anoscan demo``: the three documents, and the folder of pictures."""

    schema: ClassVar[str] = "anoscan.demo/1"
    train: TrainReport
    score: ScoreReport
    eval: EvalReport
    output: str


@dataclass(frozen=True, kw_only=True)
class TuringTest:
    """A sheet of shuffled real and generated images, and the file that says which is which."""

    sheet: str
    key: str
    real: int
    generated: int


@dataclass(frozen=True, kw_only=True)
class SampleReport:
    """Result of ``anoscan sample``: the pictures written, by what they show."""

    schema: ClassVar[str] = "anoscan.sample/1"
    model: ModelReference
    seed: int
    n: int
    grid: str
    interpolation: str
    between: str | None
    turing: TuringTest | None
    skipped: tuple[Skipped, ...]


@dataclass(frozen=True, kw_only=True)
class ModelSummary:
    """One model of ``anoscan models list``: `problem` if unreadable, `default` if trained last."""

    name: str
    path: str
    bytes: int
    created_by: str | None
    architecture: str | None = None
    objective: str | None = None
    size: int | None = None
    channels: int | None = None
    images: int | None = None
    problem: str | None = None
    default: bool = False


@dataclass(frozen=True, kw_only=True)
class ModelsReport:
    """Result of ``anoscan models list``."""

    schema: ClassVar[str] = "anoscan.models/1"
    models: tuple[ModelSummary, ...] = field(default=())


@dataclass(frozen=True, kw_only=True)
class DoctorReport:
    """Result of ``anoscan doctor``: facts by topic, and the checks made of them."""

    schema: ClassVar[str] = "anoscan.doctor/1"
    verdict: Health
    machine: dict[str, Any]
    versions: dict[str, str | None]
    store: dict[str, Any]
    images: dict[str, Any] | None
    checks: tuple[HealthCheck, ...]


def to_json(value: Any) -> Any:
    """Plain JSON value of a result: dataclasses become objects that start with their schema.

    A number that JSON cannot say (NaN, infinity) becomes null.
    """
    if is_dataclass(value) and not isinstance(value, type):
        schema = getattr(value, "schema", None)
        head = {} if schema is None else {"schema": schema}
        return head | {f.name: to_json(getattr(value, f.name)) for f in fields(value)}
    if isinstance(value, dict):
        return {str(key): to_json(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [to_json(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
