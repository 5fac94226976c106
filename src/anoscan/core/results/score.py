"""Results of ``anoscan score``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar

from anoscan.core.results.common import (
    ModelHealth,
    ModelReference,
    Search,
    Skipped,
    Threshold,
    Verdict,
    brief,
)

IMAGE_SCHEMA = "anoscan.image/1"  # of a line of ``score --jsonl``, which is an `ImageScore`


@dataclass(frozen=True, kw_only=True, slots=True)
class Region:
    """An anomalous region of a query image; its box and area are in pixels of the image as stored.

    `score` is the peak of the anomaly map inside it. `p_value` is (1 + m) / (n + 1), where m of the
    n held-out normals have at least such a peak in their maps. `below_level` marks the hottest
    place of an anomalous image of which no place exceeds the level of normal images.
    """

    x: int
    y: int
    width: int
    height: int
    score: float
    area: int
    p_value: float
    below_level: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class Neighbour:
    """A normal training image, and its Euclidean distance in the latent space of the encoder."""

    path: str
    distance: float


@dataclass(frozen=True, kw_only=True)
class ImageScore:
    """Score and verdict of one query image.

    `rank` 1 is the most anomalous image; it is null while streaming. `terms` are standardised
    unless the score uses them raw. `percentiles` gives for each term the percentage of calibration
    images with a lower value. `residual` is the path of the picture, where one was written.
    `mismatch` says in what the image as a whole differs from all normal images, such as its size.
    It does not decide the verdict. `nearest` are the most similar normal images, and `maps` the
    files of the anomaly map by their form. Both are null where they were not asked for.
    """

    __repr__ = brief
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

    @property
    def located(self) -> bool:
        """Whether the image is anomalous, and a region in it is above the level of regions."""
        above = any(not region.below_level for region in self.regions)
        return self.verdict == "anomalous" and above


@dataclass(frozen=True, kw_only=True)
class Alarm:
    """A rule of ``--fail-if``, whether it holds for the run, and in `detail` with which numbers."""

    rule: str
    holds: bool
    detail: str


@dataclass(frozen=True, kw_only=True)
class ScoreReport:
    """Result of ``anoscan score``; `score` and `mapping` say how images were scored.

    `search` is null where the encoder gave the latents. `warning` is set when nearly all images are
    anomalous, which is hardly ever true. `health` is that of the model. `alarms` are the rules that
    the run was asked to check.
    """

    __repr__ = brief
    schema: ClassVar[str] = "anoscan.score/1"
    model: ModelReference
    score: str
    mapping: str
    threshold: Threshold
    counts: dict[str, int]
    images: Sequence[ImageScore]
    skipped: tuple[Skipped, ...]
    warning: str | None = None
    search: Search | None = None
    health: ModelHealth
    alarms: tuple[Alarm, ...] = ()
