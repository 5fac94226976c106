"""Results of ``anoscan train`` and ``anoscan doctor``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from anoscan.core.results.common import Health, HealthCheck, HealthReport, ModelReference, Skipped


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
class DoctorReport:
    """Result of ``anoscan doctor``: facts by topic, and the checks made of them."""

    schema: ClassVar[str] = "anoscan.doctor/1"
    verdict: Health
    machine: dict[str, Any]
    versions: dict[str, str | None]
    store: dict[str, Any]
    images: dict[str, Any] | None
    checks: tuple[HealthCheck, ...]
