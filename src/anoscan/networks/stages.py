"""Makes the stages of a training, with the lengths that its settings ask for."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Generic, TypeVar

import numpy as np
import torch
from torch import nn

from anoscan.core import registry, team
from anoscan.core.arrays import Floats
from anoscan.core.config import TrainConfig
from anoscan.core.progress import OnProgress
from anoscan.core.runtime import Runtime
from anoscan.networks.architectures import Discriminator, Networks
from anoscan.networks.encoder_stage import EncoderStage
from anoscan.networks.gan_stage import GanStage
from anoscan.networks.joint_stage import JointStage
from anoscan.networks.loop import Batches, Position, Stage, run, state_tensors
from anoscan.networks.mappings import Mapping as Task
from anoscan.networks.objectives import Objective
from anoscan.networks.reconstruction_stage import ReconstructionStage
from anoscan.networks.rotation_stage import RotationStage

S = TypeVar("S", bound=Stage)
S_co = TypeVar("S_co", bound=Stage, covariant=True)


@dataclass(frozen=True)
class Planned(Generic[S_co]):
    """A stage, its number of steps, and the number of images that one step uses.

    `order` says how other processes make the same stage: its kind, and arguments of `Stages`.
    `given` are the weights of networks that the stage uses and does not train.
    """

    stage: S_co
    steps: int
    images_per_step: int
    order: team.Order = field(default_factory=dict)
    given: dict[str, torch.Tensor] = field(default_factory=dict)

    def run(
        self,
        position: Position,
        on_progress: OnProgress,
        checkpoint: Callable[[Position], None],
        stopping: Callable[[], bool],
    ) -> None:
        """Run the stage from `position`, together with all processes of the team.

        The leader's weights and position are those of all, so it does not matter how many
        processes an interrupted training had. Arguments and errors are those of `loop.run`.
        """
        crew = team.current()
        if crew.rank == 0 and crew.size > 1:
            where = {"step": position.step, "rollbacks": position.rollbacks}
            now = {f"now|{name}": value for name, value in state_tensors(self.stage).items()}
            crew.order({"what": "stage", **self.order, **where}, self.given | now)
        run(
            self.stage,
            steps=self.steps,
            images_per_step=self.images_per_step,
            position=position,
            on_progress=on_progress,
            checkpoint=checkpoint,
            stopping=stopping,
        )


@dataclass(frozen=True)
class Stages:
    """Makes the stages of one training.

    Parameters
    ----------
    pixels : ndarray of shape (n, c, s, s), float32
        Normal images in [-1, 1].
    rows : ndarray of int
        Rows of `pixels` to learn from.
    config : TrainConfig
        Resolved settings of the training.
    few : bool
        Whether the images are so few that the discriminator would learn them by heart. Then it is
        shown augmented images by default, and the rotation stage learns gently.
    suffix : str
        Is appended to the names of the random streams that decide the order of images.
    """

    pixels: Floats
    rows: np.ndarray
    config: TrainConfig
    runtime: Runtime
    few: bool
    suffix: str = ""

    @property
    def objective(self) -> Objective:
        """Objective of the adversarial training."""
        found: Objective = registry.load("objectives", self.config.objective)
        return found

    @property
    def joint(self) -> bool:
        """Whether the encoder is trained in the GAN stage, on pairs of image and latent."""
        return self._mapping.loss is None

    @property
    def _mapping(self) -> Task:
        found: Task = registry.load("mappings", self.config.mapping)
        return found

    def gan(self, networks: Networks) -> Planned[GanStage]:
        """Return the GAN stage, which also trains the encoder where `joint` is true."""
        kind = JointStage if self.joint else GanStage
        batches, config = self._batches("gan", self.config.batch_size), self.config
        stage = kind(networks, self.objective, batches, config, self.runtime, few=self.few)
        return self._planned("gan", stage, config.images_shown, config.batch_size)

    def rotation(self, discriminator: Discriminator) -> Planned[RotationStage] | None:
        """Return the rotation stage of a discriminator; None where the settings leave it out."""
        shown, size = self.config.rotation_images_shown, 2 * self.config.batch_size
        if not shown:
            return None
        steps, batches = math.ceil(shown / size), self._batches("rotation", size)
        stage = RotationStage(
            discriminator, batches, steps, self.config, self.runtime, few=self.few
        )
        return self._planned("rotation", stage, shown, size)

    def encoder(self, networks: Networks, attempt: int = 0) -> Planned[EncoderStage] | None:
        """Return the encoder stage; None where the settings leave it out.

        `attempt` counts the times that reconstructions of this training failed.
        """
        if not self.config.encoder_images_shown:
            return None
        size, config = self.config.batch_size, self.config
        batches = self._batches("encoder", size)
        stage = EncoderStage(networks, self._mapping, batches, config, self.runtime, attempt)
        frozen = {"generator": networks.generator, "discriminator": networks.discriminator}
        return self._planned("encoder", stage, stage.shown, size, frozen, attempt=attempt)

    def reconstruction(
        self, networks: Networks, attempt: int = 0
    ) -> Planned[ReconstructionStage] | None:
        """Return the reconstruction stage; None where the settings leave it out.

        `networks` get a decoder, which is a copy of their generator at first. `attempt` counts the
        times that reconstructions of this training failed.
        """
        shown, size = self.config.reconstruction_images_shown, self.config.batch_size
        if not shown:
            return None
        steps, batches = math.ceil(shown / size), self._batches("reconstruction", size)
        stage = ReconstructionStage(networks, batches, steps, self.config, self.runtime, attempt)
        return self._planned("reconstruction", stage, shown, size, attempt=attempt)

    def _batches(self, name: str, size: int) -> Batches:
        seed, device = self.config.seed, self.runtime.device
        return Batches(self.pixels, self.rows, size, seed, f"{name}{self.suffix}", device)

    def _planned(
        self,
        kind: str,
        stage: S,
        shown: int | None,
        size: int,
        frozen: Mapping[str, nn.Module] = MappingProxyType({}),
        **arguments: int,
    ) -> Planned[S]:
        steps = math.ceil((shown or 0) / size)
        if team.current().size == 1:
            return Planned(stage, steps, size)
        order = {"kind": kind, "few": self.few, "suffix": self.suffix, "arguments": arguments}
        given = {"rows": torch.from_numpy(self.rows)}
        for name, network in frozen.items():
            given |= {f"{name}|{k}": value for k, value in network.state_dict().items()}
        return Planned(stage, steps, size, order, given)
