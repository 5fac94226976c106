"""Give commands the options for the fields of `TrainConfig` or `ScoreRequest`."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable, Iterable, Sequence
from typing import Annotated, Any, Optional

from anoscan.cli import completion
from anoscan.cli.completion import Complete
from anoscan.cli.options import (
    BatchSize,
    DiscriminationLoss,
    Mapping,
    Rate,
    ScoreName,
    SearchSeed,
    SearchSteps,
    counted,
    option,
)
from anoscan.core import registry
from anoscan.core.config import (
    AUGMENTATIONS,
    LITE,
    NO_BACKBONE,
    FalseAlarmRate,
    TrainConfig,
    rate_in_range,
)
from anoscan.core.errors import UsageError
from anoscan.scoring.choices import BATCH_SIZE, DEFAULT_SCORE, HowToScore, Inversion

COUNTS = (
    "patches",
    "images_shown",
    "rotation_images_shown",
    "encoder_images_shown",
    "reconstruction_images_shown",
    "ema_images",
)  # settings that are numbers of images or patches, such as 32k
Run = Callable[..., None]


def with_settings(command: Run) -> Run:
    """Give a command one option for each field of `TrainConfig`, in place of its ``**settings``.

    An option that is not given is None, or False for a flag. A default in the signature would hide
    whether it was given, and only given options replace values of the --config file.
    """
    return _extended(
        command,
        (
            (field.name, _option_of(field), False if _is_flag(field) else None)
            for field in dataclasses.fields(TrainConfig)
        ),
    )


def with_request(command: Run) -> Run:
    """Give a command the options that make a `ScoreRequest`, in place of its ``**asked``."""
    return _extended(
        command,
        (
            ("score", ScoreName, DEFAULT_SCORE),
            ("mapping", Mapping, "encoder"),
            ("discrimination_loss", DiscriminationLoss, "feature"),
            ("search_steps", SearchSteps, None),
            ("false_alarm_rate", Rate, None),
            ("batch_size", BatchSize, BATCH_SIZE),
            ("seed", SearchSeed, 0),
        ),
    )


def _extended(command: Run, options: Iterable[tuple[str, Any, object]]) -> Run:
    """Replace the last parameter by options (name, annotation, default) after the second one."""
    keyword = inspect.Parameter.KEYWORD_ONLY
    own = list(inspect.signature(command, eval_str=True).parameters.values())[:-1]
    own = [parameter.replace(kind=keyword) for parameter in own]
    more = [
        inspect.Parameter(name, keyword, default=default, annotation=annotation)
        for name, annotation, default in options
    ]
    vars(command)["__signature__"] = inspect.Signature([*own[:2], *more, *own[2:]])
    return command


def asked_for(values: dict[str, Any]) -> HowToScore:
    """Return the values of the options of `with_request`, as `ScoreRequest.of` takes them."""
    names = ("mapping", "discrimination_loss", "search_steps", "seed")
    inversion = Inversion(*(values[name] for name in names))
    return HowToScore(
        score=values["score"],
        mapping=inversion,
        false_alarm_rate=rate_named(values["false_alarm_rate"]),
        batch_size=values["batch_size"],
    )


def rate_named(text: str | None) -> FalseAlarmRate | None:
    """Read a false-alarm rate: ``auto``, a share such as 0.01, or 1%; None where it is not given.

    Raises
    ------
    UsageError
        When it is none of these, or no number between 0 and 1.
    """
    if text is None:
        return None
    if text == "auto":
        return "auto"
    number = text.strip().removesuffix("%")
    try:
        rate = float(number) / (100 if text.strip().endswith("%") else 1)
    except ValueError:
        raise UsageError(
            f"--false-alarm-rate must be auto, a share such as 0.01, or 1%. Got {text!r}."
        ) from None
    return rate_in_range(rate)


def given_settings(values: dict[str, Any]) -> dict[str, Any]:
    """Return the settings that were given among the values of the options of `with_settings`."""
    given = {}
    for field in dataclasses.fields(TrainConfig):
        value = values[field.name]
        if value is None or value is False:
            continue
        named = f"--{field.name.replace('_', '-')}"
        given[field.name] = auto_int(named, value) if _may_be_auto(field) else value
    return given


def auto_int(option: str, value: str) -> int | None:
    """Return the number of an option, or None for ``auto``; raise UsageError otherwise."""
    if value == "auto":
        return None
    if not value.isascii() or not value.isdigit() or len(value) > 9:
        raise UsageError(f"{option} must be auto or a number. Got {value!r}.")
    return int(value)


def _is_flag(field: dataclasses.Field[Any]) -> bool:
    return field.type == "bool"


def _may_be_auto(field: dataclasses.Field[Any]) -> bool:
    return field.type == "int | None" and str(field.metadata["metavar"]).startswith("auto|")


def _option_of(field: dataclasses.Field[Any]) -> Any:
    about = field.metadata
    if _is_flag(field):
        return Annotated[bool, option(f"--{field.name.replace('_', '-')}", help=about["help"])]
    family = f"{field.name}s"
    names = registry.names(family) if family in registry.FAMILIES else ()
    described = [f"{name}: {registry.summary(family, name)}" for name in names]
    kinds = {"int": int, "float": float, "str": str}
    kind = str if _may_be_auto(field) else kinds[str(field.type).removesuffix(" | None")]
    declared = option(
        help=" ".join(filter(None, (about["help"], *described))),
        default=about["default"],
        metavar=about["metavar"],
        panel=about["panel"],
        complete=_completing(field.name, names),
        parser=counted if field.name in COUNTS else None,
    )
    return Annotated[Optional[kind], declared]  # noqa: UP045 - the type is only known at run time


def _completing(setting: str, names: Sequence[str]) -> Complete | None:
    """Return what completes a setting whose metavar does not list its words; else None."""
    if setting == "augment":
        return completion.listed(["auto", "none", *AUGMENTATIONS])
    if setting == "backbone":
        return completion.among([NO_BACKBONE, LITE])
    auto = ["auto"] if setting == "architecture" else []
    return completion.among([*auto, *names]) if names else None
