"""Results of the commands that look after models, and of ``anoscan demo``."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar

from anoscan.core.results.common import ModelReference, Skipped, Threshold
from anoscan.core.results.evaluate import EvalReport
from anoscan.core.results.score import ScoreReport
from anoscan.core.results.train import TrainReport


@dataclass(frozen=True, kw_only=True)
class Decision:
    """The false-alarm rate that a model judges at, and what set it.

    `set_by` is 'false-alarm-rate', 'target-recall' or 'miss-cost', the last two with `wanted`, the
    number given, the numbers of `labelled` images, and the `recall` on the very same.
    """

    false_alarm_rate: float
    set_by: str
    uses_labels: bool
    wanted: float | None = None
    labelled: dict[str, int] | None = None
    recall: float | None = None


@dataclass(frozen=True, kw_only=True)
class CalibrateReport:
    """Result of ``anoscan calibrate``. `decision` is null where the rate was left as it was.

    `previous` is the model as it was before. `warning` says what is wrong with the images.
    """

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


@dataclass(frozen=True, kw_only=True)
class Suspect:
    """One image that was taken for normal. `p_value`: share of the images at least as odd."""

    rank: int
    path: str
    score: float
    p_value: float


@dataclass(frozen=True, kw_only=True)
class SuspectsReport:
    """Result of ``anoscan suspects``: all images, most suspect first.

    `model` is null where one was trained for the purpose and not kept.
    """

    schema: ClassVar[str] = "anoscan.suspects/1"
    model: ModelReference | None
    images: tuple[Suspect, ...]
    skipped: tuple[Skipped, ...]


@dataclass(frozen=True, kw_only=True)
class DriftCheck:
    """One number of a batch of images against the calibration images.

    `statistic` is the Kolmogorov-Smirnov distance; `adjusted_p_value` accounts for all checks.
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
    """Result of ``anoscan drift``.

    `anomalous_share` of the batch is anomalous at `false_alarm_rate`; of normal images that fit,
    about that share would be.
    """

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
