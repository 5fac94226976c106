"""Parts that the results of several commands share."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, is_dataclass
from typing import Any, Literal

Verdict = Literal["normal", "anomalous"]
Health = Literal["ok", "warn", "fail"]
Reconstructions = Literal["ok", "unusable"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Skipped:
    """A file that could not be read, and the reason in a few words."""

    path: str
    reason: str


@dataclass(frozen=True, kw_only=True)
class ModelReference:
    """The model that gave a result. `sha256` is the hash of the whole model file, in hex."""

    name: str
    path: str
    sha256: str


@dataclass(frozen=True, kw_only=True)
class HealthCheck:
    """One check of a training run or of the machine; `value` is the number checked, or None."""

    name: str
    verdict: Health
    value: float | None
    message: str


@dataclass(frozen=True, kw_only=True)
class HealthReport:
    """The checks of a training run, and the worst of their verdicts."""

    verdict: Health
    checks: tuple[HealthCheck, ...]


@dataclass(frozen=True, kw_only=True)
class ModelHealth:
    """Health of the model that gave a result, from the checks of its training.

    `verdict` is the worst of the checks, and `messages` say why it is not 'ok', and what it
    affects. `reconstructions` says whether pictures of reconstructions can be used.
    """

    verdict: Health
    reconstructions: Reconstructions
    messages: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class AtRate:
    """The threshold of another false-alarm rate, and how many scored images are above it."""

    false_alarm_rate: float
    threshold: float
    anomalous: int


@dataclass(frozen=True, kw_only=True)
class Threshold:
    """The score above which an image is called anomalous.

    `false_alarm_rate` was asked for ('given' by a user or by the model), or `chosen` by the number
    of calibration images ('auto'). `effective_rate` is what n = `calibration_images` can promise;
    it is never below 1 / (n + 1). `uncertainty` is the central 95 % interval (low, high) of the
    true false-alarm rate; see `scoring.calibration.rate_interval`. `warning` says where the first
    two differ. `uses_labels` says whether labels decided the rate, or labelled normal images joined
    the calibration (``anoscan calibrate --labels``). `at_other_rates` has the other rates of
    `scoring.choices.RATES` that n images can promise; it is null where no images were scored.
    """

    score: float
    false_alarm_rate: float
    chosen: Literal["auto", "given"]
    effective_rate: float
    calibration_images: int
    uncertainty: tuple[float, float]
    warning: str | None
    uses_labels: bool = False
    at_other_rates: tuple[AtRate, ...] | None = None


@dataclass(frozen=True, kw_only=True)
class Search:
    """How latents were searched for. With the model, this is enough to repeat the search."""

    steps: int
    discrimination_loss: str
    seed: int


_LONGEST, _MOST = 100, 3  # characters of a value, and items of a list, that are shown


def brief(result: Any) -> str:
    """Return a short form of a result: what is long in it is counted or only named."""
    parts = (f"{f.name}={_brief(getattr(result, f.name))}" for f in fields(result))
    return f"{type(result).__name__}({', '.join(parts)})"


def _brief(value: Any) -> str:
    if isinstance(value, Sequence) and not isinstance(value, str) and len(value) > _MOST:
        return f"<{len(value):,} {type(value[0]).__name__}>"
    text = repr(value)
    if len(text) <= _LONGEST:
        return text
    if isinstance(value, Sequence | dict) and not isinstance(value, str):
        return f"<{len(value):,} entries>"
    return f"<{type(value).__name__}>" if is_dataclass(value) else f"{text[: _LONGEST - 3]}..."


def to_json(value: Any) -> Any:
    """Return a result as plain JSON values; numbers that JSON lacks (NaN, infinity) become null.

    Dataclasses become objects, which start with their schema where they have one.
    """
    if is_dataclass(value) and not isinstance(value, type):
        schema = getattr(value, "schema", None)
        head = {} if schema is None else {"schema": schema}
        return head | {f.name: to_json(getattr(value, f.name)) for f in fields(value)}
    if isinstance(value, dict):
        return {str(key): to_json(item) for key, item in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [to_json(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def json_text(value: Any) -> str:
    """Return plain JSON values as the text of a document, in ASCII and on several lines."""
    return json.dumps(value, indent=2, allow_nan=False, ensure_ascii=True)


def json_parts(report: Any) -> Iterator[str]:
    """Yield a result as its JSON document, in parts: lists of results are never whole in memory."""
    head = [("schema", report.schema)]
    members = ((field.name, getattr(report, field.name)) for field in fields(report))
    comma = "{"
    for name, value in itertools.chain(head, members):
        yield f'{comma}\n  "{name}": '
        comma = ","
        if isinstance(value, Sequence) and value and is_dataclass(value[0]):
            for number, item in enumerate(value):
                yield ",\n    " if number else "[\n    "
                yield json_text(to_json(item)).replace("\n", "\n    ")
            yield "\n  ]"
        else:
            yield json_text(to_json(value)).replace("\n", "\n  ")
    yield "\n}\n"
