"""Results of the commands that maintain models, and of ``anoscan demo``."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar

from anoscan.core.results.common import ModelReference, Skipped, Threshold, brief
from anoscan.core.results.evaluate import ComparedModel, EvalReport
from anoscan.core.results.score import ScoreReport
from anoscan.core.results.train import TrainReport


@dataclass(frozen=True, kw_only=True)
class Decision:
    """The false-alarm rate at which a model decides, and the option that set it.

    `set_by` is 'auto', 'false-alarm-rate', 'target-recall' or 'miss-cost'. Only the last two have
    `wanted` (the value of the option), `labelled` (numbers of images by label) and `recall` (on
    those images). With 'auto' the rate changes when other images calibrate the model.
    """

    false_alarm_rate: float
    set_by: str
    uses_labels: bool
    wanted: float | None = None
    labelled: dict[str, int] | None = None
    recall: float | None = None


@dataclass(frozen=True, kw_only=True)
class Review:
    """What ``anoscan calibrate --labels`` did with images that a person had labelled.

    Of the `normal` images, `joined` are new to the calibration, and `known` are in it already or
    are copies. `alarms_before` and `alarms` of them are called anomalous before and after.
    The `anomalous` images changed nothing; `found_before` and `found` are above the thresholds, and
    `missed` are the paths of those below the new one. `missing` are paths without an image.
    `warning` says where false alarms have biased the threshold.
    """

    labels: str
    threshold_before: float
    threshold: float
    normal: int
    joined: int
    known: int
    alarms_before: int
    alarms: int
    anomalous: int
    found_before: int
    found: int
    missed: tuple[str, ...]
    missing: tuple[str, ...]
    warning: str | None


@dataclass(frozen=True, kw_only=True)
class CalibrateReport:
    """Result of ``anoscan calibrate``; `previous` is the model before the change.

    `images` counts the new calibration images, if any; `warning` says what is wrong with them.
    `review` is null where no labelled images were to join the calibration.
    `decision` is null where the rate was not changed. `history` lists all changes of the model.
    """

    __repr__ = brief
    schema: ClassVar[str] = "anoscan.calibrate/1"
    model: ModelReference
    previous: ModelReference
    images: int | None
    warning: str | None
    threshold: Threshold
    decision: Decision | None
    uses_labels: bool
    history: tuple[dict[str, Any], ...]
    skipped: tuple[Skipped, ...]
    review: Review | None = None


@dataclass(frozen=True, kw_only=True)
class Suspect:
    """One image of a normal folder; `p_value` is the share of images at least as anomalous."""

    rank: int
    path: str
    score: float
    p_value: float


@dataclass(frozen=True, kw_only=True)
class SuspectsReport:
    """Result of ``anoscan suspects``, most suspect first; `model` is null where it was not kept."""

    __repr__ = brief
    schema: ClassVar[str] = "anoscan.suspects/1"
    model: ModelReference | None
    images: tuple[Suspect, ...]
    skipped: tuple[Skipped, ...]


@dataclass(frozen=True, kw_only=True)
class DriftCheck:
    """Comparison of one quantity between a batch of images and the calibration images.

    `statistic` is the Kolmogorov-Smirnov distance, 0 to 1. `adjusted_p_value` accounts for the
    number of checks.
    """

    name: str
    statistic: float
    p_value: float
    adjusted_p_value: float
    drifted: bool
    calibration_median: float
    batch_median: float


@dataclass(frozen=True, kw_only=True)
class DriftReport:
    """Result of ``anoscan drift``; `fits` says whether the batch fits, and `advice` what to do.

    `anomalous_share` is the share of the batch that is anomalous at the model's threshold. For
    normal images that fit the model it would be about `false_alarm_rate`.
    """

    __repr__ = brief
    schema: ClassVar[str] = "anoscan.drift/1"
    model: ModelReference
    counts: dict[str, int]
    calibration_images: int
    anomalous_share: float
    false_alarm_rate: float
    fits: bool
    advice: str
    checks: tuple[DriftCheck, ...]
    skipped: tuple[Skipped, ...]


@dataclass(frozen=True, kw_only=True)
class DemoReport:
    """Result of ``anoscan demo``: the results of three commands, and the folder of pictures."""

    __repr__ = brief
    schema: ClassVar[str] = "anoscan.demo/1"
    train: TrainReport
    score: ScoreReport
    eval: EvalReport
    output: str


@dataclass(frozen=True, kw_only=True)
class TuringTest:
    """A sheet of shuffled real and generated images, and a file that says which ones are real."""

    sheet: str
    key: str
    real: int
    generated: int


@dataclass(frozen=True, kw_only=True)
class SampleReport:
    """Result of ``anoscan sample``: paths of the pictures written; null where not asked for.

    `grid` shows `n` random samples, `interpolation` steps between samples, and `between` steps
    between two given images.
    """

    __repr__ = brief
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
    """One model of ``anoscan models list``.

    `default` marks the model that commands use without ``--model``: the one that is `pinned`, or
    else the one that was trained last. `kept` counts the versions that ``models restore`` can bring
    back, and `kept_bytes` is their size. `trained_at` is the time of the training in UTC, such as
    2026-03-01T12:00:00Z, by the date of the file. `problem` says why a model cannot be read.
    """

    name: str
    path: str
    bytes: int
    created_by: str | None
    architecture: str | None = None
    objective: str | None = None
    size: int | None = None
    channels: int | None = None
    images: int | None = None
    trained_at: str | None = None
    problem: str | None = None
    default: bool = False
    pinned: bool = False
    kept: int = 0
    kept_bytes: int = 0


@dataclass(frozen=True, kw_only=True)
class RemovedModel:
    """A model that was removed, of which `kept` versions of `kept_bytes` in all are left."""

    name: str
    kept: int
    kept_bytes: int


@dataclass(frozen=True, kw_only=True)
class ModelsReport:
    """Result of ``anoscan models list``; `pinned` names the model that ``models use`` pinned."""

    __repr__ = brief
    schema: ClassVar[str] = "anoscan.models/1"
    models: tuple[ModelSummary, ...] = field(default=())
    removed: tuple[RemovedModel, ...] = ()
    pinned: str | None = None


@dataclass(frozen=True, kw_only=True)
class ModelEvent:
    """One line of the history of a model.

    `at` is the time in UTC, and `by` the version of anoscan. `folders` are what the images came
    from, or the file that was imported. `images` counts those that were trained on, or that
    calibrated the model. `threshold` and `false_alarm_rate` are those of the model afterwards, and
    `sha256` is the hash of its file. All are null where the action sets none.
    """

    at: str
    action: str
    by: str | None
    folders: tuple[str, ...]
    images: int | None
    threshold: float | None
    false_alarm_rate: float | None
    sha256: str | None
    note: str | None


@dataclass(frozen=True, kw_only=True)
class KeptVersion:
    """An earlier version of a model, which ``models restore`` can bring back.

    `at` is when `action` replaced it. `undone` marks one that ``models restore`` replaced; then
    `action` is what had made it, and ``models restore --forward`` brings it back.
    """

    at: str
    action: str
    undone: bool
    bytes: int
    path: str


@dataclass(frozen=True, kw_only=True)
class HistoryReport:
    """Result of ``anoscan models history``: events and kept versions, the oldest first."""

    schema: ClassVar[str] = "anoscan.history/1"
    name: str
    path: str
    exists: bool
    events: tuple[ModelEvent, ...]
    kept: tuple[KeptVersion, ...]


@dataclass(frozen=True, kw_only=True)
class OnHeldOut:
    """What a model says of held-out normals.

    `anomalous_share` of them are above its `threshold`; `false_alarm_rate` is what the threshold
    promises. `score_median` is theirs, and `calibration_median` that of the calibration images of
    the model. `fits` is the answer of ``anoscan drift``. Scores of two models have no common unit.
    """

    model: ModelReference
    anomalous_share: float
    false_alarm_rate: float
    threshold: float
    score_median: float
    calibration_median: float
    fits: bool


@dataclass(frozen=True, kw_only=True)
class RetrainReport:
    """Result of ``anoscan retrain``: the training, and the `old` model against the `new` one.

    Both are compared on `held_out` normals of the new folder. The new model was calibrated on
    these, so its share of alarms is what was set. `labelled` compares both on labelled images, and
    is null without labels. `replaced` says whether the new model took the place of the old one.
    """

    schema: ClassVar[str] = "anoscan.retrain/1"
    train: TrainReport
    replaced: bool
    held_out: int
    old: OnHeldOut
    new: OnHeldOut
    labelled: tuple[ComparedModel, ...] | None
    warning: str | None


@dataclass(frozen=True, kw_only=True)
class Parity:
    """Whether an exported file gives the results of anoscan, on real images.

    `images` real ones were compared, and `with_defects` copies of them with synthetic defects;
    anoscan calls `anomalous` of all anomalous. `source` says what they are: 'images' that a user
    named, images of the 'training', or 'thumbnails' that the model keeps. `largest_difference` of
    scores and maps is in standard deviations of normal images, and that of reconstructions in
    shares of the range from black to white. The outputs of `exceeded` differ by more than their
    `tolerance`. `verdicts_differ` and `ranks_differ` count images.
    """

    passed: bool
    images: int
    with_defects: int
    source: str
    runtime: str
    anomalous: int
    largest_difference: dict[str, float]
    tolerance: dict[str, float]
    exceeded: tuple[str, ...]
    verdicts_differ: int
    ranks_differ: int


@dataclass(frozen=True, kw_only=True)
class ExportReport:
    """Result of ``anoscan export``: the paths of the two files, and what the check found.

    `sha256` and `bytes` are those of the file of the graph.
    """

    __repr__ = brief
    schema: ClassVar[str] = "anoscan.export/1"
    model: ModelReference
    format: str
    file: str
    card: str
    sha256: str
    bytes: int
    opset: int
    threshold: Threshold
    parity: Parity
    skipped: tuple[Skipped, ...]
