"""Results of ``anoscan trend``: runs of the past, and whether they drift."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal


@dataclass(frozen=True, kw_only=True)
class PastRun:
    """A run of ``anoscan score --append``: one row of a history; the fields are its columns.

    `time` is in UTC, as ISO 8601 writes it. `false_alarm_rate` is the one that the calibration
    images could promise. Medians and the 95 % quantile are null for a run without images.
    """

    time: str
    model: str
    sha256: str
    folder: str
    threshold: float
    false_alarm_rate: float
    calibration_images: int
    scored: int
    anomalous: int
    skipped: int
    score_median: float | None
    score_q95: float | None
    p_value_median: float | None

    @property
    def share(self) -> float | None:
        """Share of the scored images that are anomalous; None for a run without images."""
        return self.anomalous / self.scored if self.scored else None


@dataclass(frozen=True, kw_only=True)
class TrendCheck:
    """One test of the last runs; what it could not compare is null.

    `reference` is what `recent` is compared with: a promised rate, or the median of earlier runs.
    `adjusted_p_value` accounts for the number of tests.
    """

    name: str
    recent: float | None
    reference: float | None
    p_value: float | None
    adjusted_p_value: float | None
    drifted: bool


@dataclass(frozen=True, kw_only=True)
class TrendReport:
    """Result of ``anoscan trend``: the runs, oldest first, and one sentence about the last ones.

    `recent` and `earlier` count the runs that were compared: those of the same model and threshold
    as the last run. `verdict` is 'unknown' where there are too few of them.
    """

    schema: ClassVar[str] = "anoscan.trend/1"
    history: str
    verdict: Literal["steady", "drift", "unknown"]
    message: str
    recent: int
    earlier: int
    checks: tuple[TrendCheck, ...]
    runs: tuple[PastRun, ...]
