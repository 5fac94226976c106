"""The rotation stage: the discriminator learns to predict how normal images were rotated."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from anoscan.core import shares
from anoscan.core.config import TrainConfig
from anoscan.core.runtime import Runtime, random_stream
from anoscan.networks.architectures import Discriminator
from anoscan.networks.augmentation import quarter_turns
from anoscan.networks.loop import half_wave, set_rate

# ROTATION_RATE is the learning rate at the start. Weights are multiplied by SHRINK before it.
# Smaller weights learn anew more readily, while the GAN stage needs them larger. Ash and Adams 2020
# (arXiv 1910.08475) also shrink weights before a network learns something else. Few images would be
# learned by heart that way. With them weights are not shrunk and the rate is GENTLE_RATE, so the
# features of the GAN stage change little.
ROTATION_RATE, SHRINK = 2e-3, 0.4
GENTLE_RATE = 5e-4


class RotationStage:
    """Trains the discriminator alone to predict by which quarter rotation an image was rotated.

    Its features are used afterwards, its realness head is not. Chen et al. 2019 (arXiv 1811.11212)
    train the same task together with the GAN, which gave worse features on the development classes.
    Features that distinguish generated from real images, and that are as smooth as the GAN needs,
    say less of what images show. docs/decisions.md has the figures ("Together with the GAN or
    afterwards?").

    Parameters
    ----------
    discriminator : Discriminator
        Trained in place.
    rotated : callable
        Maps a step number to unrotated images (n, c, s, s) in [-1, 1], on the runtime's device.
    steps : int
        Number of steps of the stage. The learning rate falls to zero over them.
    few : bool
        Whether the images are so few that they would be learned by heart. Then weights are not
        shrunk, and the learning rate is `GENTLE_RATE`.
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
        """Train on one batch of rotated images and return its loss."""
        rotated, rotations = rotate_randomly(
            self.rotated(index), self.config.seed, "turn-again", index
        )
        with self.runtime.autocast():
            logits = self.discriminator.rotation(self.discriminator.features(rotated))
        loss = cross_entropy(logits, rotations)
        optimizer = self.optimizers["discriminator"]
        set_rate(optimizer, self.rate * half_wave(index / self.steps, 0) * self.slow_down)
        optimizer.zero_grad(set_to_none=True)
        shares.current().backward(loss, [optimizer])
        optimizer.step()
        return {"rotation": loss.detach()}


def rotate_randomly(x: Tensor, seed: int, name: str, index: int) -> tuple[Tensor, Tensor]:
    """Return images (n, c, s, s) rotated by random quarter rotations, and their numbers.

    The numbers of quarter rotations are (n,) int64, 0 to 3.
    """
    generator = random_stream(seed, name, index)
    draw = shares.current().drawn
    rotations = draw(lambda n: torch.randint(4, (n,), generator=generator), len(x)).to(x.device)
    return quarter_turns(x)[rotations, torch.arange(len(x), device=x.device)], rotations
