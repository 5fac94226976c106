"""Train the encoder and the reconstructions of a model again; all other networks stay."""

from __future__ import annotations

import copy
import dataclasses
from pathlib import Path
from typing import Any

from anoscan.core.config import FEW_IMAGES, TrainConfig
from anoscan.core.errors import UsageError
from anoscan.core.runtime import Runtime
from anoscan.dataset.material import Material
from anoscan.model.model import Model, fresh_networks
from anoscan.networks.architectures import Networks
from anoscan.networks.stages import Stages
from anoscan.training import network_checks
from anoscan.training.folds import Folds
from anoscan.training.train_networks import TrainedNetworks, TrainingRun, train_reconstructions

STAGES = ("encoder",)  # what can be trained again
# Settings that may be changed then.
_SETTINGS = ("encoder", "mapping", "encoder_images_shown", "reconstruction_images_shown")


def model_to_redo(stage: str, path: Path, runtime: Runtime) -> Model:
    """Read the model of which a stage is to be trained again.

    Raises
    ------
    UsageError
        For a stage that cannot be trained again, alone or in this model.
    ModelError
        When the model is missing or damaged.
    """
    if stage not in STAGES:
        raise UsageError(f"--redo must be one of {', '.join(STAGES)}. Got {stage!r}.")
    before, _ = Model.read(path, runtime)
    if before.config.mapping == "bigan":
        raise UsageError(
            f"--redo encoder: the encoder of {path.stem} learned with its GAN.",
            hint="Train a new model.",
        )
    if before.config.calibration_folds is not None:
        raise UsageError(
            f"--redo encoder: {path.stem} was calibrated in folds, which need the whole training.",
            hint="Train a new model.",
        )
    return before


def settings_for(before: Model, asked: dict[str, Any]) -> TrainConfig:
    """Return the settings of a model, changed by those that are asked for and no default.

    Raises
    ------
    UsageError
        When a setting was given that the encoder and its reconstructions do not depend on.
    """
    config, usual = before.config, TrainConfig().to_dict()
    given = {name: value for name, value in asked.items() if value != usual[name]}
    other = [
        name
        for name, value in given.items()
        if name not in _SETTINGS and value != getattr(config, name)
    ]
    if other:
        option = f"--{other[0].replace('_', '-')}"
        raise UsageError(f"--redo encoder keeps the other settings of the model: drop {option}.")
    chosen = {name: value for name, value in given.items() if name in _SETTINGS}
    if "mapping" in chosen:
        chosen = {"encoder_images_shown": None, "reconstruction_images_shown": None} | chosen
    return dataclasses.replace(config, **chosen)


def redo_encoder(
    before: Model, material: Material, config: TrainConfig, runtime: Runtime, training: TrainingRun
) -> TrainedNetworks:
    """Train the encoder and the reconstructions of a model again; all else stays.

    `material` are the images that the model was trained on. Raises as `train_networks` does.
    """
    fresh = fresh_networks(config, material.rule, "weights-redo").encoder
    kept = copy.deepcopy(before.networks)
    networks = Networks(kept.generator, kept.discriminator, fresh).to(runtime.device)
    few = len(material.rows) < FEW_IMAGES
    stages = Stages(material.pixels, material.rows, config, runtime, few)
    # The realness head is that of before the rotation stage, so it is not asked.
    game = network_checks.game(
        networks.generator, None, material, config, images=network_checks.SAMPLES
    )
    rotated, after_gan = "rotation" in before.fitted, copy.deepcopy(networks)
    train_reconstructions(networks, stages, material, training)
    notified, stopping = training.on_progress, training.stopping
    folds = Folds(after_gan, rotated, few, material, config, runtime, notified, stopping)
    return TrainedNetworks(networks.frozen(runtime.measuring().device), game, folds)
