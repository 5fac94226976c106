"""The checkpoint of a run, from which an interrupted training goes on."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from anoscan.core.arrays import under
from anoscan.core.errors import ModelError
from anoscan.model import file as model_file
from anoscan.networks.loop import Position, Stage, load_state_tensors, state_tensors


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
        self._finished: dict[str, dict[str, Tensor]] = {}
        self._tensors: dict[str, Tensor] = {}
        self._found: dict[str, Any] = {}
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
            self._tensors, self._found = model_file.load(self.path)
        except ModelError as error:
            raise ModelError(
                f"--resume: the checkpoint cannot be used: {error.message}",
                hint="Train without --resume.",
            ) from error
        if (identity := self._found.get("identity", {})) != self.identity:
            differing = ", ".join(_differing(identity, self.identity))
            raise ModelError(
                f"--resume: the checkpoint is not of this run. What differs: {differing}.",
                hint="Give the images and options of the interrupted run, or drop --resume.",
            )

    def has_finished(self, stage: Stage) -> bool:
        """Say whether the checkpoint holds the end state of `stage`."""
        return stage.name in self._found.get("finished", ())

    def restore(self, stage: Stage) -> Position:
        """Load the state of `stage` and return its position; without one, return the start."""
        if self._found.get("stage") != stage.name:
            return Position()
        load_state_tensors(stage, under(self._tensors, "now|"))
        return Position(self._found["step"], self._found["rollbacks"])

    def restore_finished(self, stage: Stage) -> None:
        """Load the end state of `stage`, which must be in the checkpoint; see `has_finished`."""
        load_state_tensors(stage, under(self._tensors, f"finished-{stage.name}|"))
        self._remember(stage, self._found["finished"][stage.name])

    def finish(self, stage: Stage, position: Position) -> None:
        """Write the end state of `stage`, and those of the stages before it."""
        self._remember(stage, position.rollbacks)
        self._write({}, None, Position())

    def _remember(self, stage: Stage, rollbacks: int) -> None:
        self.rollbacks += rollbacks
        self._finished[stage.name] = {
            f"finished-{stage.name}|{key}": value.clone()
            for key, value in state_tensors(stage).items()
        } | {f"finished-{stage.name}|rollbacks": torch.tensor(rollbacks)}

    def save(self, stage: Stage, position: Position) -> None:
        """Write the state of a stage under way, and the end states of the stages before it."""
        now = {f"now|{key}": value for key, value in state_tensors(stage).items()}
        self._write(now, stage.name, position)

    def _write(self, tensors: dict[str, Tensor], stage: str | None, position: Position) -> None:
        rollbacks = {}
        for name, finished in self._finished.items():
            tensors |= finished
            rollbacks[name] = int(finished[f"finished-{name}|rollbacks"])
        metadata = {
            "kind": "checkpoint",
            "identity": self.identity,
            "stage": stage,
            "step": position.step,
            "rollbacks": position.rollbacks,
            "finished": rollbacks,
        }
        model_file.save(self.path, tensors, metadata)


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
