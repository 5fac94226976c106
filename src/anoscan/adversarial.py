"""The adversarial stage: a generator learns what normal images look like.

The generator maps latents z ~ N(0, I) to images; the discriminator tells them from real ones. The
objective (``objectives/``) says what each minimises; this module is the one place where they
take turns.
"""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
from torch import Tensor, nn

from anoscan.architectures import Networks
from anoscan.config import TrainConfig
from anoscan.objectives import Objective
from anoscan.runtime import Runtime, stream


class GanStage:
    """Generator, its moving average, and discriminator, trained on batches of normal images.

    Parameters
    ----------
    networks : Networks
        `generator` and `discriminator` are trained; `generator` is not the one to score with.
    objective : Objective
    batches : callable
        From a step number to real images (n, c, s, s) in [-1, 1] on the runtime's device.
    config : TrainConfig
    runtime : Runtime
    """

    name = "gan"

    def __init__(
        self,
        networks: Networks,
        objective: Objective,
        batches: Callable[[int], Tensor],
        config: TrainConfig,
        runtime: Runtime,
    ) -> None:
        self.objective, self.batches, self.config, self.runtime = (
            objective,
            batches,
            config,
            runtime,
        )
        self.generator, self.discriminator = networks.generator, networks.discriminator
        self.average = copy.deepcopy(networks.generator).requires_grad_(False)
        rate = config.learning_rate or objective.learning_rate
        self.optimizers: dict[str, torch.optim.Optimizer] = {
            name: torch.optim.Adam(network.parameters(), lr=rate, betas=objective.betas)
            for name, network in (
                ("generator", self.generator),
                ("discriminator", self.discriminator),
            )
        }
        self.modules: dict[str, nn.Module] = {
            "generator": self.generator,
            "average": self.average,
            "discriminator": self.discriminator,
        }

    def step(self, index: int) -> dict[str, Tensor]:
        """Train the discriminator on one batch, and the generator when it is its turn."""
        losses = self._discriminator_step(index)
        if (index + 1) % self.objective.discriminator_steps == 0:
            losses |= self._generator_step(index)
            self._average_step(index)
        return losses

    def latent(self, index: int, name: str, n: int) -> Tensor:
        """Latents (n, d) ~ N(0, I) of a step; drawn on the CPU, so the same on every device."""
        generator = stream(self.config.seed, name, index)
        z = torch.randn(n, self.config.latent_dim, generator=generator)
        return z.to(self.runtime.device)

    def _discriminator_step(self, index: int) -> dict[str, Tensor]:
        real = self.batches(index)
        with torch.no_grad(), self.runtime.autocast():
            fake = self.generator(self.latent(index, "discriminator-latent", len(real)))
        fake = fake.float()
        with self.runtime.autocast():
            realness = self.discriminator(torch.cat([real, fake]))
        loss = self.objective.discriminator_loss(*realness.chunk(2))
        losses = {"discriminator": loss.detach()}
        if index % self.objective.penalty_every == 0:
            penalty = self._penalty(index, real, fake)
            loss = loss + penalty * self.objective.penalty_every
            losses["penalty"] = penalty.detach()
        self._descend("discriminator", loss)
        return losses

    def _penalty(self, index: int, real: Tensor, fake: Tensor) -> Tensor:
        # One mixing weight a sample. Float32: second derivatives lose too much in bfloat16.
        generator = stream(self.config.seed, "mix", index)
        alpha = torch.rand(len(real), 1, 1, 1, generator=generator).to(real.device)
        return self.objective.penalty(self.discriminator, real, fake, alpha)

    def _generator_step(self, index: int) -> dict[str, Tensor]:
        z = self.latent(index, "generator-latent", self.config.batch_size)
        self.discriminator.requires_grad_(False)
        with self.runtime.autocast():
            realness = self.discriminator(self.generator(z))
        loss = self.objective.generator_loss(realness)
        self._descend("generator", loss)
        self.discriminator.requires_grad_(True)
        return {"generator": loss.detach()}

    def _descend(self, name: str, loss: Tensor) -> None:
        self.optimizers[name].zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        self.optimizers[name].step()

    @torch.no_grad()
    def _average_step(self, index: int) -> None:
        # Short memory at first (a tenth of what was shown): early weights are worth nothing.
        shown = (index + 1) * self.config.batch_size
        half_life = min(self.config.ema_images, max(shown / 10, 1))
        per_update = self.config.batch_size * self.objective.discriminator_steps
        keep = 0.5 ** (per_update / half_life)
        for mean, value in zip(
            self.average.state_dict().values(), self.generator.state_dict().values(), strict=True
        ):
            if value.is_floating_point():
                mean.lerp_(value, 1 - keep)
            else:
                mean.copy_(value)


def sample(generator: nn.Module, n: int, latent_dim: int, seed: int, name: str) -> Tensor:
    """Images (n, c, s, s) in [-1, 1] from latents of a named stream; the generator in eval mode."""
    z = torch.randn(n, latent_dim, generator=stream(seed, name))
    device = next(generator.parameters()).device
    with torch.no_grad():
        images: Tensor = generator(z.to(device))
    return images.float()
