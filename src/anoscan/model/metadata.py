"""The schema of a model's metadata: what must be there, and of which type and range.

Values that people alone read (the self-test, counts of images) are checked for their type only.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, Literal, TypeVar

import msgspec

from anoscan.core.config import NO_BACKBONE, TrainConfig
from anoscan.core.files import printable
from anoscan.core.results import HealthReport
from anoscan.images.decode import ImageRule

T = TypeVar("T")
_OF_BACKBONE = ("backbone_density", "backbone_local")  # terms of a pretrained network
LONGEST_REASON = 300  # characters of a fault that a message repeats

Count = Annotated[int, msgspec.Meta(ge=0)]
Level = Annotated[float, msgspec.Meta(gt=0, lt=1e6)]
Rate = Annotated[float, msgspec.Meta(gt=0, lt=1)]
Text = Annotated[str, msgspec.Meta(min_length=1)]
Digest = Annotated[str, msgspec.Meta(pattern=r"\A[0-9a-f]{64}\Z")]
Texts = Annotated[tuple[Text, ...], msgspec.Meta(min_length=1)]


class _TrainingData(msgspec.Struct):
    found: Count
    trained: Count
    held_out: Count
    dropped: Count
    skipped: Count
    sha256: Digest
    sizes: dict[str, Count]
    bit_depths: dict[str, Count]
    patches: Count | None = None


class _Maps(msgspec.Struct):
    aligned: bool
    relative: bool
    level: Level


class _Backbone(msgspec.Struct):
    name: Text
    source: Text
    sha256: Digest
    licence: Text


class _Decision(msgspec.Struct):
    false_alarm_rate: Rate
    set_by: Text
    uses_labels: bool


class _Decided(_Decision, tag_field="action", tag="decide"):
    by: Text


class _Calibrated(msgspec.Struct, tag_field="action", tag="calibrate"):
    images: Count
    skipped: Count
    sha256: Digest
    uses_labels: bool
    by: Text


class _Metadata(msgspec.Struct):
    kind: Literal["model"]
    anoscan_version: Text
    torch_version: Text
    device: Text
    precision: Literal["float32", "bfloat16"]
    config: dict[str, Any]
    image_rule: dict[str, Any]
    picture_scale: Level
    kinds: Texts
    training_data: _TrainingData
    terms: Texts
    maps: _Maps
    health: HealthReport
    self_test: dict[str, Any]
    backbone: _Backbone | msgspec.UnsetType = msgspec.UNSET
    decision: _Decision | msgspec.UnsetType = msgspec.UNSET
    history: list[_Decided | _Calibrated] | msgspec.UnsetType = msgspec.UNSET
    reviewed: list[Digest] | msgspec.UnsetType = msgspec.UNSET


@dataclass(frozen=True)
class Described:
    """What the metadata of a model say of its tensors."""

    config: TrainConfig
    rule: ImageRule
    terms: tuple[str, ...]
    kinds: tuple[str, ...]
    picture_scale: float
    aligned: bool


def checked(metadata: dict[str, Any]) -> Described:
    """Return what the metadata of a model say, after all that the program uses is checked.

    Raises
    ------
    ValueError
        For the first value that is missing, of a wrong type or out of range, or does not fit
        another one.
    UsageError
        When the settings are not those of a training.
    """
    found = converted(metadata, _Metadata)
    config, rule = TrainConfig.from_dict(found.config), ImageRule.from_dict(found.image_rule)
    _check_resolved(config)
    asked = (config.size, config.channels, config.patch, config.fit)
    if asked != (rule.size, rule.channels, rule.patch, rule.fit):
        raise ValueError("the settings and the rule for images do not fit each other")
    if len(set(found.terms)) != len(found.terms):
        raise ValueError("a term is named twice")
    _check_backbone(config, found)
    aligned = found.maps.aligned
    return Described(config, rule, found.terms, found.kinds, found.picture_scale, aligned)


def _check_backbone(config: TrainConfig, found: _Metadata) -> None:
    pretrained = config.backbone != NO_BACKBONE
    of_backbone = [name for name in found.terms if name.startswith("backbone_")]
    named = found.backbone.name if isinstance(found.backbone, _Backbone) else NO_BACKBONE
    if named != config.backbone or pretrained != (len(of_backbone) == len(_OF_BACKBONE)):
        raise ValueError("the settings, the terms and the pretrained network do not fit each other")


def converted(values: dict[str, Any], schema: type[T]) -> T:
    """Return JSON values as an instance of a schema.

    Raises
    ------
    ValueError
        For the first value that is missing, of a wrong type or out of range.
    """
    try:
        return msgspec.convert(values, schema)
    except msgspec.ValidationError as error:
        raise ValueError(f"in its metadata: {error}") from error


def in_one_line(error: Exception) -> str:
    """Return the text of an error about a file, which may repeat any content of the file."""
    text = " ".join(printable(str(error)).split()).rstrip(".")
    return text if len(text) <= LONGEST_REASON else f"{text[:LONGEST_REASON]}..."


def _check_resolved(config: TrainConfig) -> None:
    """Refuse settings that a training decides, and has not."""
    stages = ("", "rotation_", "encoder_", "reconstruction_")
    decided = (*(f"{stage}images_shown" for stage in stages), "learning_rate")
    left = [name for name in decided if getattr(config, name) is None]
    left += ["architecture"] * (config.architecture == "auto")
    if left:
        raise ValueError(f"the setting {left[0]} is not decided")
