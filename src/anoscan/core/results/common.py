"""Parts that several results share."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields, is_dataclass
from typing import Any, Literal

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
class Search:
    """How latents were searched for; with the model, all that repeating the search needs."""

    steps: int
    discrimination_loss: str
    seed: int


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
