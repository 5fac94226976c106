"""Two of these processes share training steps; the first prints how far they are from its own.

Plain gradient descent takes the place of Adam, whose first steps would hide an error of scale.
"""

from __future__ import annotations

import dataclasses
import json
import math
import sys
from collections.abc import Callable

import numpy as np
import torch

from anoscan.core import team
from anoscan.core.config import TrainConfig
from anoscan.core.launch import launched
from anoscan.core.runtime import Runtime
from anoscan.images.decode import ImageRule
from anoscan.model.model import fresh_networks
from anoscan.networks import loop
from anoscan.networks.architectures import Networks
from anoscan.networks.loop import Position, Stage, run, state_tensors
from anoscan.networks.stages import Planned, Stages

RULE = ImageRule(size=16, channels=1, window=None)
CPU = Runtime(torch.device("cpu"), "float32", 1)
PIXELS = torch.rand(20, 1, 16, 16, generator=torch.Generator().manual_seed(1)).numpy() * 2 - 1
BASE = TrainConfig(
    size=16,
    channels=1,
    architecture="dcgan",
    width=4,
    latent_dim=6,
    batch_size=7,  # parts of 3 and 4 images
    images_shown=14,
    rotation_images_shown=28,
    encoder_images_shown=14,
    reconstruction_images_shown=14,
    augment="shift, cutout, brightness, flip",
)
CASES: dict[str, tuple[TrainConfig, Callable[[Stages, Networks], Planned[Stage] | None]]] = {
    "gan": (BASE, Stages.gan),
    "growing": (dataclasses.replace(BASE, architecture="progressive"), Stages.gan),
    "penalty": (dataclasses.replace(BASE, architecture="mlp", objective="wgan-gp"), Stages.gan),
    "pairs": (
        dataclasses.replace(
            BASE,
            architecture="resnet",
            objective="hinge",
            mapping="bigan",
            encoder="vae",
            encoder_images_shown=None,
        ),
        Stages.gan,
    ),
    "rotation": (BASE, lambda stages, networks: stages.rotation(networks.discriminator)),
    "encoder": (BASE, Stages.encoder),
    "reconstruction": (
        dataclasses.replace(BASE, architecture="resnet"),
        Stages.reconstruction,
    ),
}


def planned(case: str) -> Planned[Stage]:
    """Return a stage with fresh networks, which learns by plain gradient descent."""
    config, make = CASES[case]
    stages = Stages(PIXELS, np.arange(20), config, CPU, few=True)
    made = make(stages, fresh_networks(config, RULE))
    assert made is not None
    for name, optimizer in made.stage.optimizers.items():
        weights = [weight for group in optimizer.param_groups for weight in group["params"]]
        made.stage.optimizers[name] = torch.optim.SGD(weights)
    return made


def state(stage: Stage) -> torch.Tensor:
    """Return all weights and statistics of a stage as one vector."""
    values = [v.flatten().double() for v in state_tensors(stage).values() if v.is_floating_point()]
    return torch.cat(values)


def trained(case: str) -> tuple[torch.Tensor, dict[str, float]]:
    """Return how a stage changed in its steps, and the losses that it reported."""
    made, losses = planned(case), dict[str, float]()
    before = state(made.stage)
    run(  # without an order, because both processes make the stage themselves
        made.stage,
        steps=made.steps,
        images_per_step=made.images_per_step,
        position=Position(),
        on_progress=lambda progress: losses.update(progress.losses),
        checkpoint=lambda position: None,
        stopping=lambda: False,
    )
    return state(made.stage) - before, losses


def main() -> None:
    """Train all cases alone, in the first process, and then in both together."""
    torch.set_num_threads(1)
    loop.LOOK_SECONDS = math.inf  # losses are those of the whole stage, on a slow machine too
    launch = launched()
    assert launch is not None
    alone = {case: trained(case) for case in CASES} if launch.rank == 0 else {}
    found = {}
    with team.joined(launch, "cpu"):
        for case in CASES:
            change, losses = trained(case)
            if launch.rank == 0:
                whole, reported = alone[case]
                apart = float((change - whole).norm() / whole.norm())
                found[case] = {"apart": apart, "losses": [losses, reported]}
    if launch.rank == 0:
        sys.stdout.write(json.dumps(found))


if __name__ == "__main__":
    main()
