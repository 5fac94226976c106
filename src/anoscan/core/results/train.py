"""Results of ``anoscan train`` and ``anoscan doctor``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from anoscan.core.results.common import (
    Health,
    HealthCheck,
    HealthReport,
    ModelReference,
    Skipped,
    brief,
)


@dataclass(frozen=True, kw_only=True)
class TrainedModel(ModelReference):
    """A model that was just trained, with the settings that describe it."""

    architecture: str
    objective: str
    encoder: str
    mapping: str
    backbone: str
    size: int
    patch_size: int | None
    channels: int
    latent_dim: int


@dataclass(frozen=True, kw_only=True)
class TrainImages:
    """What the training did with the images of its folder.

    `dropped` counts suspects: the networks saw them, but no statistics of normal images were fitted
    to them. `patches` counts the parts of images learned from; it is null for whole images.
    """

    found: int
    trained: int
    held_out: int
    dropped: int = 0
    patches: int | None
    skipped: tuple[Skipped, ...]


@dataclass(frozen=True, kw_only=True)
class SelfTestCell:
    """How well synthetic defects of one kind and size are found.

    `size` is in pixels of the images as the networks see them. `auroc` and `pixel_auroc` have a
    value for ``anoscan`` and one for each baseline.
    """

    kind: str
    size: int
    images: int
    auroc: dict[str, float]
    pixel_auroc: dict[str, float]


@dataclass(frozen=True, kw_only=True)
class SelfTest:
    """How well a model finds synthetic defects in held-out normals: an estimate without labels.

    `side` is in pixels of the images as the networks see them. `auroc` and `pixel_auroc` are means
    over the cells, empty when no defect could be made. `whole_auroc` belongs to images that were
    bent as a whole. Defects are found from `sees_from` pixels on; it is null when they are not
    found. `findings` say this in words, and what to do about it.
    """

    __repr__ = brief
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
    """Result of ``anoscan train``; `images_shown` and `seconds` give the length of each stage.

    `tracking` is the folder of losses and pictures; it is null where it could not be written.
    """

    __repr__ = brief
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
class DoctorReport:
    """Result of ``anoscan doctor``: facts by topic, the checks of them, and the worst verdict."""

    __repr__ = brief
    schema: ClassVar[str] = "anoscan.doctor/1"
    verdict: Health
    machine: dict[str, Any]
    versions: dict[str, str | None]
    store: dict[str, Any]
    images: dict[str, Any] | None
    checks: tuple[HealthCheck, ...]
