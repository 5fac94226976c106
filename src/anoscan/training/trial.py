"""Try a few steps of a training, to estimate the time and memory it would need on this machine."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch

from anoscan.core.arrays import IN_MEMORY, Floats
from anoscan.core.config import FEW_IMAGES, NO_BACKBONE, TrainConfig
from anoscan.core.runtime import Runtime
from anoscan.images.decode import ImageRule
from anoscan.model.model import fresh_networks
from anoscan.model.patch_test import MOST_IMAGES
from anoscan.networks import backbone
from anoscan.networks.architectures import Growing, Networks
from anoscan.networks.loop import Stage
from anoscan.networks.stages import Planned, Stages
from anoscan.scoring.baselines import MOST_NUMBERS
from anoscan.scoring.fitting import MOST, fit_all
from anoscan.scoring.measure import CHUNK, Measurer, chunks, terms_of

# Places in a stage where steps are tried, as shares of its length. A place near the end comes
# first, because networks that grow are slow there.
PLACES = (0.875, 0.375, 0.625, 0.125)
SECONDS = 5.0  # after this time no more places of a stage are tried


@dataclass(frozen=True)
class Trial:
    """What a training is expected to need.

    Parameters
    ----------
    seconds : dict
        Time by part of the training, and as ``total``, without reading the images.
    memory, device_memory : float or None
        Bytes that the process, and a CUDA device, need at most; None where that is not known.
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
    """Take some steps of each stage, and estimate what the whole training needs.

    Parameters
    ----------
    pixels : ndarray of shape (n, c, s, s), float32
        Some of the images, as the networks see them.
    config : TrainConfig
        Resolved settings.
    rule : ImageRule
    runtime : Runtime
    trained, held_out : int
        Numbers of images in the whole training.
    """
    networks = fresh_networks(config, rule).to(runtime.device)
    seconds = {
        planned.stage.name: _expected(planned, cycle, runtime)
        for planned, cycle in _stages(networks, pixels, config, runtime, trained)
    }
    device = runtime.measuring().device
    batch = next(chunks(np.arange(min(len(pixels), CHUNK)), pixels.__getitem__, device))
    pretrained = config.backbone != NO_BACKBONE
    if pretrained:  # whose weights do not change how long it takes
        networks.backbone = backbone.blank(config.backbone).to(device)
    networks.frozen(device)
    patches = config.patches is not None
    game = bool(config.images_shown)
    names = terms_of(rotated=game, patches=patches, backbone=pretrained, game=game)
    fit = partial(fit_all, networks, names, pixels, np.arange(len(batch)), config.seed, device)
    fitted, _ = fit()
    fitting = _timed(fit, runtime)
    measuring = _timed(lambda: Measurer(networks, fitted, rule).measure(batch), runtime)
    measured = held_out + min(held_out, MOST_IMAGES)
    seconds["calibration"] = (fitting * min(trained, MOST) + measuring * measured) / len(batch)
    seconds["total"] = sum(seconds.values())
    return Trial(seconds, *_memory(pixels, trained + held_out, runtime))


def _stages(
    networks: Networks, pixels: Floats, config: TrainConfig, runtime: Runtime, trained: int
) -> Iterator[tuple[Planned[Stage], int]]:
    """Yield the stages of the training, each with the number of steps after which costs repeat."""
    if not config.images_shown:
        return
    stages = Stages(pixels, np.arange(len(pixels)), config, runtime, trained < FEW_IMAGES)
    gan, objective = stages.gan(networks), stages.objective
    yield gan, max(objective.discriminator_steps, objective.penalty_every)
    for network in (networks.generator, networks.discriminator, *gan.stage.averages):
        if isinstance(network, Growing):
            network.grow(1.0)  # later stages use these networks at full size
    if rotation := stages.rotation(gan.stage.trained().discriminator):
        yield rotation, 1
    after_gan = gan.stage.trained()
    if encoder := stages.encoder(after_gan):
        yield encoder, 1
    if reconstruction := stages.reconstruction(after_gan):
        yield reconstruction, 1


def _expected(planned: Planned[Stage], cycle: int, runtime: Runtime) -> float:
    """Estimate the seconds of a stage by timing whole cycles of steps, after which costs repeat."""
    stage, steps = planned.stage, planned.steps
    stage.step(0)  # the first step also sets things up, so it is not timed
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
    """Estimate the bytes that the process and the CUDA device will need at most, where known."""
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
    # PCA works on a copy of the pixels, and makes another one to centre it.
    pca = 2 * min(all_pixels, 4 * MOST_NUMBERS)
    return float(so_far + min(all_pixels, IN_MEMORY) + pca - pixels.nbytes), on_device
