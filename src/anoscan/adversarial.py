"""The adversarial stage: a generator learns what normal looks like, a discriminator where to look.

The generator maps latents z ~ N(0, I) to images; the discriminator tells them from real ones. The
objective (``objectives/``) says what each minimises; this module is the one place where they
take turns.

Beside realness the discriminator names the quarter turn of rotated real images (Chen et al. 2019,
"Self-Supervised GANs via Auxiliary Rotation Loss", arXiv 1811.11212, eq. 3). To tell real from
generated it may forget what the images show; to tell which way is up it may not. Its features and
its certainty about the turn are what the score is made of.
"""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from anoscan.architectures import Discriminator, Networks, quarter_turns
from anoscan.config import TrainConfig
from anoscan.objectives import Objective
from anoscan.runtime import Runtime, stream
from anoscan.training import set_rate

GENERATOR_RATE = 0.5  # of the discriminator's learning rate
TURNED_BATCH = 2  # rotated images a step, in batches


class GanStage:
    """Generator and discriminator, trained on batches of normal images, and their averages.

    Parameters
    ----------
    networks : Networks
        `generator` and `discriminator` are trained; `averages` are the ones to score with.
    objective : Objective
    batches : callable
        From a step number to real images (n, c, s, s) in [-1, 1] on the runtime's device.
    turned : callable
        The same, for the images that are rotated.
    config : TrainConfig
    runtime : Runtime
    """

    name = "gan"

    def __init__(
        self,
        networks: Networks,
        objective: Objective,
        batches: Callable[[int], Tensor],
        turned: Callable[[int], Tensor],
        config: TrainConfig,
        runtime: Runtime,
    ) -> None:
        self.objective, self.batches, self.turned = objective, batches, turned
        self.config, self.runtime = config, runtime
        self.generator, self.discriminator = networks.generator, networks.discriminator
        self.averages: tuple[nn.Module, Discriminator] = (
            copy.deepcopy(networks.generator).requires_grad_(False),
            copy.deepcopy(networks.discriminator).requires_grad_(False),
        )
        self.slow_down = 1.0
        self.optimizers: dict[str, torch.optim.Optimizer] = {
            name: torch.optim.Adam(network.parameters(), betas=objective.betas)
            for name, network in (
                ("generator", self.generator),
                ("discriminator", self.discriminator),
            )
        }
        self.modules: dict[str, nn.Module] = {
            "generator": self.generator,
            "generator-average": self.averages[0],
            "discriminator": self.discriminator,
            "discriminator-average": self.averages[1],
        }

    def step(self, index: int) -> dict[str, Tensor]:
        """Train the discriminator on one batch, and the generator when it is its turn."""
        turn = (index + 1) % self.objective.discriminator_steps == 0
        real = self.batches(index)
        with torch.set_grad_enabled(turn), self.runtime.autocast():
            fake = self.generator(self._latent(index, len(real)))
        losses = self._discriminator_step(index, real, fake.detach().float())
        if turn:
            losses |= self._generator_step(fake)
        self._average_step(index)
        return losses

    def _latent(self, index: int, n: int) -> Tensor:
        # Drawn on the CPU: the same on every device.
        z = torch.randn(
            n, self.config.latent_dim, generator=stream(self.config.seed, "latent", index)
        )
        return z.to(self.runtime.device)

    def _discriminator_step(self, index: int, real: Tensor, fake: Tensor) -> dict[str, Tensor]:
        turned, turns = self._turned(index)
        n = len(real)
        with self.runtime.autocast():
            # One pass for all three: small batches waste a processor.
            features = self.discriminator.features(torch.cat([real, fake, turned]))
            realness = self.discriminator.judge([block[: 2 * n] for block in features])
            loss = self.objective.discriminator_loss(*realness.chunk(2))
            losses = {"discriminator": loss.detach()}
            if len(turned):
                logits = self.discriminator.turn([block[2 * n :] for block in features])
                rotation = cross_entropy(logits, turns)
                loss = loss + self.config.rotation_weight * rotation
                losses["rotation"] = rotation.detach()
        if index % self.objective.penalty_every == 0:
            penalty = self._penalty(index, real, fake)
            loss = loss + penalty * self.objective.penalty_every
            losses["penalty"] = penalty.detach()
        self._descend("discriminator", loss)
        return losses

    def _turned(self, index: int) -> tuple[Tensor, Tensor]:
        """Real images, each by a random quarter turn, and the turns; none without the task."""
        if not self.config.rotation_weight:
            device = self.runtime.device
            side, channels = self.config.size or 0, self.config.channels or 0
            return torch.empty(0, channels, side, side, device=device), torch.empty(0)
        images = self.turned(index)
        turns = torch.randint(4, (len(images),), generator=stream(self.config.seed, "turn", index))
        turns = turns.to(images.device)
        every = quarter_turns(images)
        return every[turns, torch.arange(len(images), device=images.device)], turns

    def _penalty(self, index: int, real: Tensor, fake: Tensor) -> Tensor:
        # One mixing weight a sample. Float32: second derivatives lose too much in bfloat16.
        generator = stream(self.config.seed, "mix", index)
        alpha = torch.rand(len(real), 1, 1, 1, generator=generator).to(real.device)
        return self.objective.penalty(self.discriminator, real, fake, alpha)

    def _generator_step(self, fake: Tensor) -> dict[str, Tensor]:
        self.discriminator.requires_grad_(False)
        with self.runtime.autocast():
            loss = self.objective.generator_loss(self.discriminator(fake))
        self._descend("generator", loss)
        self.discriminator.requires_grad_(True)
        return {"generator": loss.detach()}

    def _descend(self, name: str, loss: Tensor) -> None:
        optimizer = self.optimizers[name]
        share = GENERATOR_RATE if name == "generator" else 1.0
        rate = self.config.learning_rate or self.objective.learning_rate
        set_rate(optimizer, rate * share * self.slow_down)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()

    @torch.no_grad()
    def _average_step(self, index: int) -> None:
        # Short memory at first (a tenth of what was shown): early weights are worth nothing.
        shown = (index + 1) * self.config.batch_size
        half_life = min(self.config.ema_images, max(shown / 10, 1))
        keep = 0.5 ** (self.config.batch_size / half_life)
        for average, network in zip(
            self.averages, (self.generator, self.discriminator), strict=True
        ):
            for mean, value in zip(
                average.state_dict().values(), network.state_dict().values(), strict=True
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
