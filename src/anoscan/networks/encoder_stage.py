"""The encoder stage: generator and discriminator are frozen, and an encoder learns x -> z.

Afterwards one pass G(E(x)) gives the reconstruction of an image. AnoGAN instead searched the latent
space with hundreds of steps of back-propagation for each image.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from anoscan.core import registry, shares
from anoscan.core.config import TrainConfig
from anoscan.core.runtime import Runtime, random_stream
from anoscan.networks.architectures import Networks
from anoscan.networks.augmentation import cut_paste
from anoscan.networks.encoders import Encoder
from anoscan.networks.loop import half_wave, set_rate
from anoscan.networks.mappings import Mapping

LEARNING_RATE = 1e-3
LAST_RATE = 0.02  # share of the learning rate that is left at the end of the stage
# Where reconstructions failed, a new encoder is trained for longer and at a lower rate.
ATTEMPTS = ("encoder", "encoder-2", "encoder-3")  # names of the stage, by attempt
SLOWER, LONGER = 0.3, 2  # factors of the rate, per attempt, and of the length of later attempts


class EncoderStage:
    """Trains the encoder on batches of normal images; generator and discriminator are frozen.

    Parameters
    ----------
    networks : Networks
        Only `encoder` is trained. `generator` is the moving average.
    mapping : Mapping
        Says which images the encoder is given, and which loss it minimises.
    batches : callable
        Maps a step number to images (n, c, s, s), float32 in [-1, 1], on the runtime's device.
    attempt : int
        How many times reconstructions have failed before; see `ATTEMPTS`.

    Attributes
    ----------
    shown : int
        Length of the stage in images.
    """

    def __init__(
        self,
        networks: Networks,
        mapping: Mapping,
        batches: Callable[[int], Tensor],
        config: TrainConfig,
        runtime: Runtime,
        attempt: int = 0,
    ) -> None:
        self.name, self.rate = ATTEMPTS[attempt], LEARNING_RATE * SLOWER**attempt
        self.networks, self.mapping, self.batches = networks, mapping, batches
        self.shown = (config.encoder_images_shown or 0) * (LONGER if attempt else 1)
        self.config, self.runtime = config, runtime
        self.kind: Encoder = registry.load("encoders", config.encoder)
        networks.generator.eval().requires_grad_(False)
        networks.discriminator.eval().requires_grad_(False)
        networks.encoder.train().requires_grad_(True)
        self.slow_down = 1.0
        optimizer = torch.optim.Adam(networks.encoder.parameters())
        self.optimizers: dict[str, torch.optim.Optimizer] = {"encoder": optimizer}
        self.modules: dict[str, nn.Module] = {"encoder": networks.encoder}

    def step(self, index: int) -> dict[str, Tensor]:
        """Train the encoder on one batch and return its loss.

        Raises
        ------
        TypeError
            When the mapping has no loss, so the encoder is trained in the GAN stage.
        """
        if self.mapping.loss is None:
            raise TypeError("this mapping is learned beside the GAN")
        with self.runtime.autocast():
            x, z, given = self._task(index)
            noise = self._normal("encoder-noise", index)
            z_hat, penalty = self.kind.encode(self.networks.encoder, given, noise)
            loss = self.mapping.loss(self.networks, x, z, z_hat) + penalty
        optimizer = self.optimizers["encoder"]
        set_rate(optimizer, self._rate(index))
        optimizer.zero_grad(set_to_none=True)
        shares.current().backward(loss, [optimizer])
        optimizer.step()
        return {"encoder": loss.detach()}

    def _task(self, index: int) -> tuple[Tensor, Tensor, Tensor]:
        """Return images (n, c, s, s), latents (n, d), and the images that the encoder is given."""
        z = self._normal("encoder-latent", index)
        if self.mapping.given == "samples":
            with torch.no_grad():
                x = self.networks.generator(z).float()
            return x, z, x
        with shares.taking(shares.WHOLE):  # rectangles come from images of other processes
            x = self.batches(index)
            given = cut_paste(x, random_stream(self.config.seed, "corruption", index))
        rows = shares.current().rows
        return x[rows], z, given[rows]

    def _normal(self, name: str, index: int) -> Tensor:
        # The numbers are drawn on the CPU, so they are the same on every device.
        generator = random_stream(self.config.seed, name, index)
        numbers = torch.randn(self.config.batch_size, self.config.latent_dim, generator=generator)
        return numbers[shares.current().rows].to(self.runtime.device)

    def _rate(self, index: int) -> float:
        """Return the learning rate of a step, which falls along half a cosine wave."""
        over = index * self.config.batch_size / max(self.shown, 1)
        return self.rate * self.slow_down * half_wave(over, LAST_RATE)
