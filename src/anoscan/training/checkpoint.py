"""The checkpoint of a run, from which an interrupted training goes on."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
from torch import Tensor

from anoscan.core.arrays import under
from anoscan.core.config import TrainConfig
from anoscan.core.errors import AnoscanError, ModelError
from anoscan.model import file as model_file
from anoscan.model.metadata import Count, Digest, converted, in_one_line
from anoscan.networks.loop import (
    MOST_ROLLBACKS,
    Position,
    Stage,
    check_state_tensors,
    load_state_tensors,
    state_tensors,
)

_STAGES = r"\A(gan|rotation|(encoder|reconstruction)(-[23])?)\Z"
_Name = Annotated[str, msgspec.Meta(pattern=_STAGES)]
_Rollbacks = Annotated[int, msgspec.Meta(ge=0, le=MOST_ROLLBACKS)]


class _Identity(msgspec.Struct):
    config: dict[str, Any]
    images: Digest
    roi: dict[str, Any] | None = None


class _Found(msgspec.Struct):
    kind: Literal["checkpoint"]
    identity: _Identity
    stage: _Name | None
    step: Count
    rollbacks: _Rollbacks
    finished: dict[_Name, _Rollbacks]


class Checkpoint:
    """The checkpoint of a run: a safetensors file beside the models, never pickled.

    It holds the state of the stage that is under way, if any, and the end states of earlier stages.

    Parameters
    ----------
    path : Path
    identity : dict
        Settings, images and region of interest of the run. A run can only go on from a checkpoint
        with the same identity.
    resume : bool
        Whether to read the checkpoint and go on from it.

    Attributes
    ----------
    rollbacks : int
        How often finished stages went back because losses or weights were not finite.

    Raises
    ------
    ModelError
        When the checkpoint to go on from is missing, cannot be read, or is of another run.
    """

    def __init__(self, path: Path, identity: dict[str, Any], resume: bool) -> None:
        self.path, self.identity = path, identity
        self.rollbacks = 0
        self._finished: dict[str, int] = {}  # rollbacks of stages
        self._kept: dict[str, Tensor] = {}  # end states of stages
        self._tensors: dict[str, Tensor] = {}
        self._found: _Found | None = None
        if resume:
            self._read()

    @staticmethod
    def check(path: Path) -> None:
        """Make sure that there is a checkpoint, before any image is read.

        Raises
        ------
        ModelError
            When there is none at `path`.
        """
        if not path.exists():
            raise ModelError(
                "--resume: there is no checkpoint of an interrupted run under this name.",
                hint="Train without --resume.",
            )

    def _read(self) -> None:
        self.check(self.path)
        try:
            self._tensors, metadata, _ = model_file.load(self.path)
        except ModelError as error:
            raise _unusable(error.message) from error
        try:
            self._found = _checked(metadata, self._tensors)
        except (ValueError, AnoscanError) as error:
            raise self._damaged(error) from error
        if (identity := metadata["identity"]) != self.identity:
            differing = ", ".join(_differing(identity, self.identity))
            raise ModelError(
                f"--resume: the checkpoint is not of this run. What differs: {differing}.",
                hint="Give the images and options of the interrupted run, or drop --resume.",
            )

    def _damaged(self, error: Exception) -> ModelError:
        return _unusable(f"{self.path} is damaged: {in_one_line(error)}.")

    def has_finished(self, stage: Stage) -> bool:
        """Say whether the checkpoint holds the end state of `stage`."""
        return self._found is not None and stage.name in self._found.finished

    def restore(self, stage: Stage) -> Position:
        """Load the state of `stage` and return its position; without one, return the start.

        Raises
        ------
        ModelError
            When the tensors cannot be the state of this stage.
        """
        if self._found is None or self._found.stage != stage.name:
            return Position()
        self._load(stage, "now|")
        return Position(self._found.step, self._found.rollbacks)

    def restore_finished(self, stage: Stage) -> None:
        """Load the end state of `stage`, where `has_finished` is true; raises as `restore` does."""
        if self._found is not None:
            self._load(stage, f"finished-{stage.name}|")
            self._remember(stage, self._found.finished[stage.name])

    def _load(self, stage: Stage, prefix: str) -> None:
        state = under(self._tensors, prefix)
        try:
            check_state_tensors(stage, state)
        except ValueError as error:
            raise self._damaged(error) from error
        load_state_tensors(stage, state)

    def finish(self, stage: Stage, position: Position) -> None:
        """Write the end state of `stage`, and those of the stages before it."""
        self._remember(stage, position.rollbacks)
        self._write({}, None, Position())

    def _remember(self, stage: Stage, rollbacks: int) -> None:
        self.rollbacks += rollbacks
        self._finished[stage.name] = rollbacks
        self._kept |= {
            f"finished-{stage.name}|{key}": value.clone()
            for key, value in state_tensors(stage).items()
        }

    def save(self, stage: Stage, position: Position) -> None:
        """Write the state of a stage under way, and the end states of the stages before it."""
        now = {f"now|{key}": value for key, value in state_tensors(stage).items()}
        self._write(now, stage.name, position)

    def _write(self, tensors: dict[str, Tensor], stage: str | None, position: Position) -> None:
        metadata = {
            "kind": "checkpoint",
            "identity": self.identity,
            "stage": stage,
            "step": position.step,
            "rollbacks": position.rollbacks,
            "finished": self._finished,
        }
        model_file.save(self.path, tensors | self._kept, metadata)


def _unusable(reason: str) -> ModelError:
    return ModelError(
        f"--resume: the checkpoint cannot be used: {reason}", hint="Train without --resume."
    )


def _checked(metadata: dict[str, Any], tensors: Iterable[str]) -> _Found:
    """Return the metadata of a checkpoint, after all of them and the tensors' names are checked.

    Raises
    ------
    ValueError, UsageError
        When `Checkpoint` cannot have written them.
    """
    found = converted(metadata, _Found)
    config = TrainConfig.from_dict(found.identity.config)
    if found.step > 3 * max(length or 0 for length in config.lengths().values()):
        raise ValueError("its step is beyond the end of every stage")
    if found.stage in found.finished or "gan" not in {found.stage, *found.finished}:
        raise ValueError("its stages cannot be those of one training")
    states = {f"finished-{name}" for name in found.finished} | ({"now"} if found.stage else set())
    if unknown := {name.partition("|")[0] for name in tensors} - states:
        raise ValueError(f"its tensors {min(unknown)[:80]!r} are of no stage that it names")
    return found


def _differing(kept: dict[str, Any], now: dict[str, Any]) -> Iterator[str]:
    """Yield what differs between two identities, named as on the command line."""
    if kept.get("images") != now["images"]:
        yield "images"
    if kept.get("roi") != now.get("roi"):
        yield "--roi"
    before, after = kept.get("config", {}), now["config"]
    for name in sorted(before.keys() | after.keys()):
        if before.get(name) != after.get(name):
            yield f"--{name.replace('_', '-')} (was {before.get(name)}, is {after.get(name)})"
