"""A short trial of the training that a folder would get: how long it would take on this machine."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch

from anoscan.core import registry
from anoscan.core.arrays import IN_MEMORY, Floats
from anoscan.core.config import FEW_IMAGES, TrainConfig
from anoscan.core.runtime import Runtime
from anoscan.images.decode import ImageRule
from anoscan.model.model import fresh_networks
from anoscan.model.patch_test import MOST_IMAGES
from anoscan.networks.architectures import Growing, Networks
from anoscan.networks.encoder_stage import EncoderStage
from anoscan.networks.gan_stage import GanStage
from anoscan.networks.joint_stage import JointStage
from anoscan.networks.loop import Batches, Stage
from anoscan.networks.mappings import Mapping
from anoscan.networks.objectives import Objective
from anoscan.networks.rotation_stage import RotationStage
from anoscan.scoring.baselines import MOST_NUMBERS
from anoscan.scoring.measure import CHUNK, chunks, fit_terms, measure, terms_of

# Where in a stage steps are tried: networks that grow are slow at the end, so that comes first.
PLACES = (0.875, 0.375, 0.625, 0.125)
SECONDS = 5.0  # after which a stage is tried at no more places


@dataclass(frozen=True)
class Trial:
    """What a training is expected to need.

    Parameters
    ----------
    seconds : dict
        By part of the training, and in total; without reading the images.
    memory : float or None
        Bytes at most, of the whole process; None where the system does not say.
    device_memory : float or None
        Bytes at most on a CUDA device.
    """

    seconds: dict[str, float]
    memory: float | None
    device_memory: float | None


def run(
    pixels: Floats,
    config: TrainConfig,
    rule: ImageRule,
    runtime: Runtime,
    *,
    trained: int,
    held_out: int,
) -> Trial:
    """Take some steps of each stage, and reckon up.

    Parameters
    ----------
    pixels : ndarray of shape (n, c, s, s), float32
        Some of the images.
    config : TrainConfig
        Resolved.
    trained, held_out : int
        Images of the whole training.
    """
    networks = fresh_networks(config, rule)
    for network in (networks.generator, networks.discriminator, networks.encoder):
        network.to(device=runtime.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    seconds = {
        stage.name: _expected(stage, steps, cycle, runtime)
        for stage, steps, cycle in _stages(networks, pixels, config, runtime, trained)
    }
    device = runtime.measuring().device
    batch = next(chunks(np.arange(min(len(pixels), CHUNK)), pixels.__getitem__, device))
    networks.frozen(device)
    names = terms_of(rotated=True, patches=config.patches is not None)
    fitted = fit_terms(networks, names, [batch])
    fitting = _timed(lambda: fit_terms(networks, names, [batch]), runtime)
    measuring = _timed(lambda: measure(networks, fitted, batch), runtime)
    measured = held_out + min(held_out, MOST_IMAGES)
    seconds["calibration"] = (fitting * trained + measuring * measured) / len(batch)
    seconds["total"] = sum(seconds.values())
    return Trial(seconds, *_memory(pixels, trained + held_out, runtime))


def _stages(
    networks: Networks, pixels: Floats, config: TrainConfig, runtime: Runtime, trained: int
) -> Iterator[tuple[Stage, int, int]]:
    """Stages as `learn` would make them, their lengths in steps, and steps until costs repeat."""
    objective: Objective = registry.load("objectives", config.objective)
    mapping: Mapping = registry.load("mappings", config.mapping)
    rows, few, size = np.arange(len(pixels)), trained < FEW_IMAGES, config.batch_size

    def batches(many: int) -> Batches:
        return Batches(pixels, rows, many, config.seed, "trial", runtime.device)

    kind = JointStage if mapping.loss is None else GanStage
    gan = kind(networks, objective, batches(size), config, runtime, few=few)
    cycle = max(objective.discriminator_steps, objective.penalty_every)
    yield gan, math.ceil((config.images_shown or 0) / size), cycle
    for network in (networks.generator, networks.discriminator, *gan.averages):
        if isinstance(network, Growing):
            network.grow(1.0)  # later stages see them at full size
    if config.rotation_images_shown:
        steps = math.ceil(config.rotation_images_shown / (2 * size))
        pupil = gan.trained().discriminator
        yield RotationStage(pupil, batches(2 * size), steps, config, runtime, few=few), steps, 1
    if mapping.loss is not None:
        steps = math.ceil((config.encoder_images_shown or 0) / size)
        yield EncoderStage(gan.trained(), mapping, batches(size), config, runtime), steps, 1


def _expected(stage: Stage, steps: int, cycle: int, runtime: Runtime) -> float:
    """Seconds that a stage of so many steps takes."""
    stage.step(0)  # the first one sets things up
    taken, spent = 0, 0.0
    for place in PLACES:
        first = int(place * steps) // cycle * cycle
        for index in range(first, first + cycle):
            spent += _timed(partial(stage.step, index), runtime)
            taken += 1
        if spent > SECONDS:
            break
    return spent / taken * steps


def _timed(act: Callable[[], object], runtime: Runtime) -> float:
    start = time.monotonic()
    act()
    if runtime.device.type == "cuda":
        torch.cuda.synchronize()
    elif runtime.device.type == "mps":
        torch.mps.synchronize()
    return time.monotonic() - start


def _memory(pixels: Floats, images: int, runtime: Runtime) -> tuple[float | None, float | None]:
    """Bytes that the process will need at most, and on the device."""
    on_device = None
    if runtime.device.type == "cuda":
        on_device = float(torch.cuda.max_memory_allocated())
    try:
        import resource
    except ImportError:  # on Windows
        return None, on_device
    # Kilobytes on Linux, bytes on macOS.
    unit = 1 if sys.platform == "darwin" else 1024
    so_far = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    all_pixels = 4 * images * pixels[0].size
    # PCA works on a copy, centred in another.
    pca = 2 * min(all_pixels, 4 * MOST_NUMBERS)
    return float(so_far + min(all_pixels, IN_MEMORY) + pca - pixels.nbytes), on_device
