"""Makes the stages of a training, with the lengths that its settings ask for."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Generic, TypeVar

import numpy as np

from anoscan.core import registry
from anoscan.core.arrays import Floats
from anoscan.core.config import TrainConfig
from anoscan.core.runtime import Runtime
from anoscan.networks.architectures import Discriminator, Networks
from anoscan.networks.encoder_stage import EncoderStage
from anoscan.networks.gan_stage import GanStage
from anoscan.networks.joint_stage import JointStage
from anoscan.networks.loop import Batches, Stage
from anoscan.networks.mappings import Mapping
from anoscan.networks.objectives import Objective
from anoscan.networks.reconstruction_stage import ReconstructionStage
from anoscan.networks.rotation_stage import RotationStage

S = TypeVar("S", bound=Stage)
S_co = TypeVar("S_co", bound=Stage, covariant=True)


@dataclass(frozen=True)
class Planned(Generic[S_co]):
    """A stage, its number of steps, and the number of images that one step uses."""

    stage: S_co
    steps: int
    images_per_step: int


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
    def _mapping(self) -> Mapping:
        found: Mapping = registry.load("mappings", self.config.mapping)
        return found

    def gan(self, networks: Networks) -> Planned[GanStage]:
        """Return the GAN stage, which also trains the encoder where `joint` is true."""
        kind = JointStage if self.joint else GanStage
        batches, config = self._batches("gan", self.config.batch_size), self.config
        stage = kind(networks, self.objective, batches, config, self.runtime, few=self.few)
        return self._planned(stage, config.images_shown, config.batch_size)

    def rotation(self, discriminator: Discriminator) -> Planned[RotationStage] | None:
        """Return the rotation stage of a discriminator; None where the settings leave it out."""
        shown, size = self.config.rotation_images_shown, 2 * self.config.batch_size
        if not shown:
            return None
        steps, batches = math.ceil(shown / size), self._batches("rotation", size)
        stage = RotationStage(
            discriminator, batches, steps, self.config, self.runtime, few=self.few
        )
        return self._planned(stage, shown, size)

    def encoder(self, networks: Networks, attempt: int = 0) -> Planned[EncoderStage] | None:
        """Return the encoder stage; None where the settings leave it out.

        `attempt` counts the encoder stages of this training that failed.
        """
        if not self.config.encoder_images_shown:
            return None
        size, config = self.config.batch_size, self.config
        batches = self._batches("encoder", size)
        stage = EncoderStage(networks, self._mapping, batches, config, self.runtime, attempt)
        return self._planned(stage, stage.shown, size)

    def reconstruction(self, networks: Networks) -> Planned[ReconstructionStage] | None:
        """Return the reconstruction stage; None where the settings leave it out.

        `networks` get a decoder, which is a copy of their generator at first.
        """
        shown, size = self.config.reconstruction_images_shown, self.config.batch_size
        if not shown:
            return None
        steps, batches = math.ceil(shown / size), self._batches("reconstruction", size)
        stage = ReconstructionStage(networks, batches, steps, self.config, self.runtime)
        return self._planned(stage, shown, size)

    def _batches(self, name: str, size: int) -> Batches:
        seed, device = self.config.seed, self.runtime.device
        return Batches(self.pixels, self.rows, size, seed, f"{name}{self.suffix}", device)

    def _planned(self, stage: S, shown: int | None, size: int) -> Planned[S]:
        return Planned(stage, math.ceil((shown or 0) / size), size)
