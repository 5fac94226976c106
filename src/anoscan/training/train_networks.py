"""Train the networks of a model: the GAN stage, the rotation stage and the encoder stage."""

from __future__ import annotations

import copy
import math
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
from anoscan.images.decode import ImageRule
from anoscan.model.model import fresh_networks
from anoscan.networks.architectures import Discriminator, Networks
from anoscan.networks.backbone import Backbone
from anoscan.networks.encoder_stage import ATTEMPTS
from anoscan.networks.loop import Stage
from anoscan.networks.stages import Planned, Stages
from anoscan.scoring.measure import chunks
from anoscan.scoring.terms import rotation_logits
from anoscan.scoring.terms.rotation import certainty
from anoscan.training import network_checks
from anoscan.training.checkpoint import Checkpoint
from anoscan.training.folds import Folds
from anoscan.training.health import UNUSABLE, GameWatch
from anoscan.training.network_checks import Game

# The rotation stage is undone when the certainty of the rotation of held-out normals is below this.
# A task that was learned by heart, or not at all (textures, discs), only makes the features worse.
# With many images little can be learned by heart, so there anything clearly above guessing counts.
LEARNED, LEARNED_OF_FEW = 0.05, 0.5


class Observer(Protocol):
    """Follows the training of networks, to record it; it changes nothing of the training."""

    def show(
        self,
        held_out: Floats,
        latent_dim: int,
        seed: int,
        device: torch.device,
        rule: ImageRule | None = None,
    ) -> None:
        """Take held-out images (n, c, s, s), float32, whose reconstructions are to be shown.

        The other arguments are those of the training, and decide the latents of the generated
        images.
        """

    def following(
        self,
        stage: str,
        images: int,
        on_progress: OnProgress,
        *,
        generator: nn.Module | None = None,
        mirror: tuple[nn.Module, nn.Module] | None = None,
    ) -> OnProgress:
        """Return a callback for the progress of a stage.

        Parameters
        ----------
        stage : str
        images : int
            Number of images that the stage was already shown, when it is resumed.
        on_progress : callable
            Called by the callback with each `Progress`.
        generator : nn.Module, optional
            Makes generated images to show, when the stage trains it.
        mirror : (nn.Module, nn.Module), optional
            Encoder and generator that reconstruct the held-out images, when the stage trains the
            encoder.
        """


class Clock:
    """Wall-clock seconds of the parts of a run."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._since = time.monotonic()

    def with_total(self) -> dict[str, float]:
        """Return the seconds of all parts, and their sum as ``total``."""
        return self.seconds | {"total": sum(self.seconds.values())}

    def lap(self, part: str) -> None:
        """End a part, or a piece of it: count the time since the part before it ended."""
        now = time.monotonic()
        self.seconds[part] = self.seconds.get(part, 0.0) + now - self._since
        self._since = now


@dataclass(frozen=True)
class TrainingRun:
    """What all stages of one training share.

    `checkpoint` knows which stages an interrupted run has finished. `stopping` is asked between
    steps whether the run is to stop.
    """

    checkpoint: Checkpoint
    observer: Observer
    on_progress: OnProgress
    stopping: Callable[[], bool]
    clock: Clock

    def go(
        self, planned: Planned[Stage], on_progress: OnProgress | None = None, **shown: Any
    ) -> None:
        """Run a stage to its end, from where the checkpoint left it.

        `on_progress` is called instead of that of the run. `shown` are the networks that
        `Observer.following` makes images with.

        Raises
        ------
        TrainingDiverged
            When losses or weights were not finite too often.
        TrainingInterrupted
            When `stopping` said yes.
        """
        stage, checkpoint = planned.stage, self.checkpoint
        if checkpoint.has_finished(stage):
            checkpoint.restore_finished(stage)
        else:
            position = checkpoint.restore(stage)
            images = position.step * planned.images_per_step
            notified = on_progress or self.on_progress
            planned.run(
                position,
                on_progress=self.observer.following(stage.name, images, notified, **shown),
                checkpoint=lambda where: checkpoint.save(stage, where),
                stopping=self.stopping,
            )
            checkpoint.finish(stage, position)
        self.clock.lap(stage.name)


@dataclass(frozen=True)
class TrainedNetworks:
    """The frozen networks of a model, the state after the GAN stage, and what folds need.

    `game` is None where the settings leave out the GAN stage.
    """

    networks: Networks
    game: Game | None
    folds: Folds

    def with_backbone(self, backbone: Backbone | None) -> tuple[Networks, Folds]:
        """Add a pretrained network to the networks and to those of folds, and return both."""
        if backbone is not None:
            backbone.to(next(self.networks.encoder.parameters()).device)
        self.networks.backbone = self.folds.after_gan.backbone = backbone
        return self.networks, self.folds


def train_networks(
    material: Material, config: TrainConfig, runtime: Runtime, training: TrainingRun
) -> TrainedNetworks:
    """Train new networks on the training images of `material`, stage by stage.

    Raises
    ------
    TrainingDiverged
        When losses or weights were not finite too often.
    TrainingInterrupted
        When `stopping` said yes.
    """
    networks, few = fresh_networks(config, material.rule), len(material.rows) < FEW_IMAGES
    networks.to(runtime.device)
    stages = Stages(material.pixels, material.rows, config, runtime, few)
    notified, stopping = training.on_progress, training.stopping
    if not config.images_shown:
        networks.frozen(runtime.measuring().device)
        folds = Folds(networks, False, few, material, config, runtime, notified, stopping)
        return TrainedNetworks(networks, None, folds)
    gan = stages.gan(networks)
    trained = gan.stage.trained()
    discriminator = None if stages.joint else trained.discriminator

    def snapshot(images: int) -> Game:
        generator = trained.generator
        return network_checks.game(generator, discriminator, material, config, images=images)

    notify(training.on_progress, "gan", stages.objective.note, config.images_shown or 0)
    watch = GameWatch(training.on_progress, snapshot)
    pairs = {"mirror": trained.mirror} if stages.joint else {}
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
    train_reconstructions(trained, stages, material, training)
    folds = Folds(after_gan, rotated, few, material, config, runtime, notified, stopping)
    return TrainedNetworks(trained.frozen(runtime.measuring().device), game, folds)


def train_reconstructions(
    trained: Networks, stages: Stages, material: Material, training: TrainingRun
) -> None:
    """Run the encoder stage and the reconstruction stage.

    While reconstructions fail, both run again from new weights, at most twice. An encoder alone may
    fail: the reconstruction stage mends most that do.
    """
    missed = math.inf
    for attempt, name in enumerate(ATTEMPTS):
        if attempt:
            note = f"reconstructions miss {missed:.0%} of what the mean image misses: trained again"
            notify(training.on_progress, name, note)
            fresh = fresh_networks(stages.config, material.rule, f"weights-{name}")
            trained.encoder = fresh.encoder.to(stages.runtime.device)
            trained.decoder = None
        if encoder := stages.encoder(trained, attempt):
            training.go(encoder, mirror=trained.mirror)
        if reconstruction := stages.reconstruction(trained, attempt):
            training.go(reconstruction, mirror=trained.mirror)
        if encoder is None:
            break
        missed = network_checks.reconstruction_error(trained, material, stages.config)
        if missed <= UNUSABLE:
            break
    if reconstruction:
        reconstruction.stage.correct()


@torch.no_grad()
def _certainty(discriminator: Discriminator, batches: Iterable[Tensor]) -> float:
    """Return the mean certainty of the rotation of images (n, c, s, s), from 0 (a guess) to 1."""
    discriminator.eval()
    found = [rotation_logits(discriminator, x, discriminator.features(x)) for x in batches]
    return float(certainty(torch.cat(found).cpu()).mean())
