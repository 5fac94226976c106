"""The rotation stage: the discriminator learns which way up normal images are."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from anoscan.core.config import TrainConfig
from anoscan.core.runtime import Runtime, random_stream
from anoscan.networks.architectures import Discriminator
from anoscan.networks.augmentation import quarter_turns
from anoscan.networks.loop import set_rate

# Learning rate of the quarter turns at the start, and what the weights are multiplied by before.
# Smaller weights learn anew more readily; the game wants them larger (Ash and Adams 2020, arXiv
# 1910.08475, shrink what was learned before learning something else). Few images would be learned
# by heart that way: with them the features of the game are only bent.
ROTATION_RATE, SHRINK = 2e-3, 0.4
GENTLE_RATE = 5e-4


class RotationStage:
    """The discriminator alone, learning quarter turns: realness is done with, features stay.

    Beside the game (as Chen et al. have it) the same task gave worse features on the development
    classes: what tells generated images from real ones, and the smoothness that the game needs,
    cost them some of their meaning. See docs/benchmarks.md.

    Parameters
    ----------
    discriminator : Discriminator
        Trained in place.
    rotated : callable
        From a step number to real images (n, c, s, s) in [-1, 1] on the runtime's device.
    steps : int
        Length of the stage: the learning rate falls to zero over it.
    config : TrainConfig
    runtime : Runtime
    few : bool
        Whether the images are so few that what the game taught should be kept.
    """

    name = "rotation"

    def __init__(
        self,
        discriminator: Discriminator,
        rotated: Callable[[int], Tensor],
        steps: int,
        config: TrainConfig,
        runtime: Runtime,
        *,
        few: bool,
    ) -> None:
        self.discriminator, self.rotated, self.steps = discriminator, rotated, steps
        self.config, self.runtime, self.slow_down = config, runtime, 1.0
        self.rate = GENTLE_RATE if few else ROTATION_RATE
        discriminator.requires_grad_(True)
        if not few:
            with torch.no_grad():
                for weights in discriminator.parameters():
                    weights.mul_(SHRINK)
        self.modules: dict[str, nn.Module] = {"discriminator": discriminator}
        optimizer = torch.optim.Adam(discriminator.parameters(), betas=(0.9, 0.99))
        self.optimizers: dict[str, torch.optim.Optimizer] = {"discriminator": optimizer}

    def step(self, index: int) -> dict[str, Tensor]:
        """One batch of turned images."""
        rotated, rotations = rotate_randomly(
            self.rotated(index), self.config.seed, "turn-again", index
        )
        with self.runtime.autocast():
            logits = self.discriminator.rotation(self.discriminator.features(rotated))
        loss = cross_entropy(logits, rotations)
        optimizer = self.optimizers["discriminator"]
        half_wave = 0.5 * (1 + math.cos(math.pi * min(index / self.steps, 1)))
        set_rate(optimizer, self.rate * half_wave * self.slow_down)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        return {"rotation": loss.detach()}


def rotate_randomly(x: Tensor, seed: int, name: str, index: int) -> tuple[Tensor, Tensor]:
    """Images (n, c, s, s), each by a random quarter turn, and the turns (n,), 0 to 3."""
    rotations = torch.randint(4, (len(x),), generator=random_stream(seed, name, index)).to(x.device)
    return quarter_turns(x)[rotations, torch.arange(len(x), device=x.device)], rotations
