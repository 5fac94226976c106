"""The reconstruction stage: a copy of the generator and the encoder are trained together.

In f-AnoGAN (Schlegl et al. 2019, doi 10.1016/j.media.2019.01.010) the generator is frozen while the
encoder learns. What the adversarial training did not learn to draw is then missing from every
reconstruction. This stage follows the encoder stage and lets both learn to repair: the encoder is
given normal images with synthetic defects, and the reconstruction is compared with the clean ones.
The generator itself is not changed, so generated images stay those of the adversarial training. At
the end `low_rank` learns what is still missing.
"""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
from torch import Tensor, nn

from anoscan.core import registry, shares
from anoscan.core.config import TrainConfig
from anoscan.core.runtime import Runtime, random_stream
from anoscan.networks.architectures import Networks
from anoscan.networks.augmentation import with_defects
from anoscan.networks.encoders import Encoder
from anoscan.networks.loop import half_wave, set_rate
from anoscan.networks.low_rank import LowRank

DECODER_RATE, ENCODER_RATE = 5e-4, 1e-3
LAST_RATE = 0.02  # share of these rates that is left at the end of the stage
ATTEMPTS = ("reconstruction", "reconstruction-2", "reconstruction-3")  # names, by attempt
CORRECTED = 2048  # normal images that the correction is learned from


class ReconstructionStage:
    """Trains a copy of the generator, the decoder, and the encoder on batches of normal images.

    Parameters
    ----------
    networks : Networks
        `encoder` is trained in place. `decoder` is set to a copy of `generator` and trained.
    batches : callable
        Maps a step number to images (n, c, s, s), float32 in [-1, 1], on the runtime's device.
    steps : int
        Number of steps of the whole stage, over which the learning rates fall.
    attempt : int
        How many times reconstructions have failed before; see `ATTEMPTS`.
    """

    def __init__(
        self,
        networks: Networks,
        batches: Callable[[int], Tensor],
        steps: int,
        config: TrainConfig,
        runtime: Runtime,
        attempt: int = 0,
    ) -> None:
        self.name = ATTEMPTS[attempt]
        self.networks, self.batches, self.steps = networks, batches, steps
        self.config, self.runtime = config, runtime
        self.kind: Encoder = registry.load("encoders", config.encoder)
        self.decoder = copy.deepcopy(networks.generator).train().requires_grad_(True)
        networks.decoder = self.decoder
        networks.encoder.train().requires_grad_(True)
        self.slow_down = 1.0
        self.modules: dict[str, nn.Module] = {
            "decoder": self.decoder,
            "encoder": networks.encoder,
        }
        self.optimizers: dict[str, torch.optim.Optimizer] = {
            name: torch.optim.Adam(network.parameters()) for name, network in self.modules.items()
        }

    def step(self, index: int) -> dict[str, Tensor]:
        """Train decoder and encoder on one batch, and return the error and the penalty.

        The error is the mean squared residual, relative to the variance of the batch.
        """
        x, given = self._pair("reconstruction-defects", index)
        draw = random_stream(self.config.seed, "reconstruction-noise", index)
        noise = torch.randn(len(x), self.config.latent_dim, generator=draw).to(x.device)
        spread = (x - x.mean(0)).square().mean().clamp_min(1e-8)
        rows = shares.current().rows
        x, given, noise = x[rows], given[rows], noise[rows]
        with self.runtime.autocast():
            z, penalty = self.kind.encode(self.networks.encoder, given, noise)
            x_hat = self.decoder(z).float()
        error = (x_hat - x).square().mean() / spread
        self._descend(index, error + penalty)
        return {"error": error.detach(), "penalty": penalty.detach()}

    @torch.no_grad()
    def correct(self) -> None:
        """Give the networks the correction of `low_rank`, after the last step."""
        network = copy.deepcopy(self.networks).frozen()
        clean, changed = [], []
        for index in range(max(1, CORRECTED // self.config.batch_size)):
            x, given = self._pair("correction-defects", index)
            correction = LowRank(x.shape[1], x.shape[-1])
            x_hat = network.reconstruct(given)
            clean.append(correction.residuals(x, x_hat))
            changed.append(correction.residuals(given, x_hat))
        correction.to(x.device).fit(torch.cat(clean), torch.cat(changed), self.config.seed)
        self.networks.correction = correction

    def _pair(self, name: str, index: int) -> tuple[Tensor, Tensor]:
        """Return normal images (n, c, s, s), and the same with defects: those of all processes."""
        with shares.taking(shares.WHOLE):  # defects are made of images of other processes
            x = self.batches(index)
            return x, with_defects(x, random_stream(self.config.seed, name, index))

    def _descend(self, index: int, loss: Tensor) -> None:
        share = half_wave(index / self.steps, LAST_RATE) * self.slow_down
        for name, rate in (("decoder", DECODER_RATE), ("encoder", ENCODER_RATE)):
            set_rate(self.optimizers[name], rate * share)
            self.optimizers[name].zero_grad(set_to_none=True)
        shares.current().backward(loss, self.optimizers.values())
        for optimizer in self.optimizers.values():
            optimizer.step()
