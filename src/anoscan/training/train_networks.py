"""The networks of a model are trained: GAN, rotation and encoder stage, one after the other."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from anoscan.core.arrays import Floats
from anoscan.core.config import FEW_IMAGES, TrainConfig
from anoscan.core.progress import OnProgress, notify
from anoscan.core.runtime import Runtime
from anoscan.dataset.material import Material
from anoscan.model.model import fresh_networks
from anoscan.networks.architectures import Discriminator, Networks
from anoscan.networks.loop import Stage, run
from anoscan.networks.stages import Planned, Stages
from anoscan.scoring.measure import chunks
from anoscan.scoring.terms import rotation_logits
from anoscan.scoring.terms.rotation import certainty
from anoscan.training import network_checks
from anoscan.training.checkpoint import Checkpoint
from anoscan.training.folds import Folds
from anoscan.training.health import GameWatch
from anoscan.training.network_checks import Game

# Certainty of the rotation of held-out normals below which the rotation stage is undone. A task
# that was learned by heart, or not at all (textures, discs), only wears the features down. Of many
# images little can be learned by heart: there anything above guessing says more than nothing.
LEARNED, LEARNED_OF_FEW = 0.05, 0.5


class Observer(Protocol):
    """What looks on while networks are trained; it changes nothing of the training."""

    def show(self, held_out: Floats, latent_dim: int, seed: int, device: torch.device) -> None:
        """Take held-out images (n, c, s, s) whose reconstructions are shown."""

    def following(
        self,
        stage: str,
        images: int,
        on_progress: OnProgress,
        *,
        generator: nn.Module | None = None,
        mirror: tuple[nn.Module, nn.Module] | None = None,
    ) -> OnProgress:
        """Return a callback for the progress of a stage that stands at `images`."""


class Clock:
    """Wall-clock seconds of the parts of a run."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._since = time.monotonic()

    def with_total(self) -> dict[str, float]:
        """All parts, and their sum."""
        return self.seconds | {"total": sum(self.seconds.values())}

    def lap(self, part: str) -> None:
        """End a part: what has passed since the last one is its time."""
        now = time.monotonic()
        self.seconds[part] = now - self._since
        self._since = now


@dataclass(frozen=True)
class TrainingRun:
    """What goes along with every stage of one training.

    Parameters
    ----------
    checkpoint : Checkpoint
        Keeps the state of the run; knows which stages an interrupted run has finished.
    observer : Observer
    on_progress : callable
    stopping : callable
        Asked between steps whether the run is to stop.
    clock : Clock
    """

    checkpoint: Checkpoint
    observer: Observer
    on_progress: OnProgress
    stopping: Callable[[], bool]
    clock: Clock

    def go(
        self, planned: Planned[Stage], on_progress: OnProgress | None = None, **shown: Any
    ) -> None:
        """Take a stage to its end, from where the checkpoint left it.

        `shown` are the networks that `Observer.following` draws with.
        """
        stage, checkpoint = planned.stage, self.checkpoint
        if checkpoint.has_finished(stage):
            checkpoint.restore_finished(stage)
        else:
            position = checkpoint.restore(stage)
            images = position.step * planned.images_per_step
            notified = on_progress or self.on_progress
            run(
                stage,
                steps=planned.steps,
                images_per_step=planned.images_per_step,
                position=position,
                on_progress=self.observer.following(stage.name, images, notified, **shown),
                checkpoint=lambda where: checkpoint.save(stage, where),
                stopping=self.stopping,
            )
            checkpoint.finish(stage, position)
        self.clock.lap(stage.name)


@dataclass(frozen=True)
class TrainedNetworks:
    """Networks at the end of all stages.

    Parameters
    ----------
    networks : Networks
        Frozen.
    game : Game
        How the game stood in the end.
    folds : Folds
        What folds start from.
    """

    networks: Networks
    game: Game
    folds: Folds


def train_networks(
    material: Material, config: TrainConfig, runtime: Runtime, training: TrainingRun
) -> TrainedNetworks:
    """Train fresh networks on the rows of `material`, stage by stage.

    Raises
    ------
    TrainingDiverged, TrainingInterrupted
    """
    networks, few = fresh_networks(config, material.rule), len(material.rows) < FEW_IMAGES
    networks.to(runtime.device)
    stages = Stages(material.pixels, material.rows, config, runtime, few)
    gan = stages.gan(networks)
    trained = gan.stage.trained()
    mirror = (trained.encoder, trained.generator)
    discriminator = None if stages.joint else trained.discriminator

    def snapshot(images: int) -> Game:
        generator = trained.generator
        return network_checks.game(generator, discriminator, material, config, images=images)

    notify(training.on_progress, "gan", stages.objective.note, config.images_shown or 0)
    watch = GameWatch(training.on_progress, snapshot)
    pairs = {"mirror": mirror} if stages.joint else {}
    training.go(gan, watch, generator=trained.generator, **pairs)
    game, after_gan = snapshot(network_checks.SAMPLES), copy.deepcopy(trained)
    rotated = False
    pupil = copy.deepcopy(trained.discriminator)
    if rotation := stages.rotation(pupil):
        training.go(rotation)
        unseen = chunks(material.unseen, material.pixels.__getitem__, runtime.device)
        rotated = _certainty(pupil, unseen) >= (LEARNED_OF_FEW if few else LEARNED)
        if rotated:
            trained.discriminator = pupil
    if encoder := stages.encoder(trained):
        training.go(encoder, mirror=mirror)
    notified, stopping = training.on_progress, training.stopping
    folds = Folds(after_gan, rotated, few, material, config, runtime, notified, stopping)
    return TrainedNetworks(trained.frozen(runtime.measuring().device), game, folds)


@torch.no_grad()
def _certainty(discriminator: Discriminator, batches: Iterable[Tensor]) -> float:
    """How well the rotation of held-out normals is told, 1 at most."""
    discriminator.eval()
    found = [rotation_logits(discriminator, x, discriminator.features(x)) for x in batches]
    return float(certainty(torch.cat(found).cpu()).mean())
