"""A short trial of the training that a folder would get: how long it would take on this machine."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch

from anoscan.core.arrays import IN_MEMORY, Floats
from anoscan.core.config import FEW_IMAGES, TrainConfig
from anoscan.core.runtime import Runtime
from anoscan.images.decode import ImageRule
from anoscan.model.model import fresh_networks
from anoscan.model.patch_test import MOST_IMAGES
from anoscan.networks.architectures import Growing, Networks
from anoscan.networks.loop import Stage
from anoscan.networks.stages import Planned, Stages
from anoscan.scoring.baselines import MOST_NUMBERS
from anoscan.scoring.measure import CHUNK, Measurer, chunks, fit_terms, terms_of

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
    networks = fresh_networks(config, rule).to(runtime.device)
    seconds = {
        planned.stage.name: _expected(planned, cycle, runtime)
        for planned, cycle in _stages(networks, pixels, config, runtime, trained)
    }
    device = runtime.measuring().device
    batch = next(chunks(np.arange(min(len(pixels), CHUNK)), pixels.__getitem__, device))
    networks.frozen(device)
    names = terms_of(rotated=True, patches=config.patches is not None)
    fitted = fit_terms(networks, names, [batch])
    fitting = _timed(lambda: fit_terms(networks, names, [batch]), runtime)
    measuring = _timed(lambda: Measurer(networks, fitted, rule).measure(batch), runtime)
    measured = held_out + min(held_out, MOST_IMAGES)
    seconds["calibration"] = (fitting * trained + measuring * measured) / len(batch)
    seconds["total"] = sum(seconds.values())
    return Trial(seconds, *_memory(pixels, trained + held_out, runtime))


def _stages(
    networks: Networks, pixels: Floats, config: TrainConfig, runtime: Runtime, trained: int
) -> Iterator[tuple[Planned[Stage], int]]:
    """Stages of the training, and of each the steps until costs repeat."""
    stages = Stages(pixels, np.arange(len(pixels)), config, runtime, trained < FEW_IMAGES)
    gan, objective = stages.gan(networks), stages.objective
    yield gan, max(objective.discriminator_steps, objective.penalty_every)
    for network in (networks.generator, networks.discriminator, *gan.stage.averages):
        if isinstance(network, Growing):
            network.grow(1.0)  # later stages see them at full size
    if rotation := stages.rotation(gan.stage.trained().discriminator):
        yield rotation, 1
    if encoder := stages.encoder(gan.stage.trained()):
        yield encoder, 1


def _expected(planned: Planned[Stage], cycle: int, runtime: Runtime) -> float:
    """Seconds that a stage takes, from some of its steps."""
    stage, steps = planned.stage, planned.steps
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
