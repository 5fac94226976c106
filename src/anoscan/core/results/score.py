"""Results of ``anoscan score``."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from anoscan.core.results.common import ModelReference, Search, Skipped, Threshold, Verdict


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
