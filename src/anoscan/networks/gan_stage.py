"""The GAN stage: the steps of generator and discriminator, and samples of the generator."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from anoscan.core import shares
from anoscan.core.config import TrainConfig
from anoscan.core.runtime import Runtime, random_stream, seeded
from anoscan.networks.architectures import Discriminator, Growing, Networks, equalise, plain_state
from anoscan.networks.augmentation import discriminator_view
from anoscan.networks.loop import set_rate
from anoscan.networks.objectives import Objective, Penalty, spread_gap

SAMPLED = 32  # images generated in one pass


class GanStage:
    """Trains generator and discriminator on batches of normal images, and averages their weights.

    Parameters
    ----------
    networks : Networks
        `generator` and `discriminator` are trained in place. The moving averages of their weights,
        which score, are in the attribute `averages`.
    batches : callable
        Maps a step number to real images (n, c, s, s) in [-1, 1] on the runtime's device.
    config : TrainConfig
        Resolved settings of the training.
    few : bool
        Whether the images are so few that the discriminator must be shown them augmented, unless
        `TrainConfig.augment` says otherwise.
    """

    name = "gan"

    def __init__(
        self,
        networks: Networks,
        objective: Objective,
        batches: Callable[[int], Tensor],
        config: TrainConfig,
        runtime: Runtime,
        *,
        few: bool,
    ) -> None:
        self.objective, self.batches = objective, batches
        self.views = config.augmentations(few=few)
        self.config, self.runtime, self.networks = config, runtime, networks
        self.generator = networks.generator
        self.discriminator = networks.discriminator
        self.opponent: nn.Module = networks.discriminator  # what the generator is trained against
        self.averages: tuple[nn.Module, Discriminator] = (
            copy.deepcopy(networks.generator).requires_grad_(False),
            copy.deepcopy(networks.discriminator).requires_grad_(False),
        )
        self._parametrise()
        self.followed: list[tuple[nn.Module, nn.Module]] = [
            (self.averages[0], self.generator),
            (self.averages[1], self.discriminator),
        ]
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
        self._extend()

    def _extend(self) -> None:
        """Add what a kind of this stage trains beside the two networks."""

    def _parametrise(self) -> None:
        # The averages were copied before, so they and all networks that are kept stay plain.
        for network in (self.generator, self.discriminator):
            if isinstance(network, Growing):
                equalise(network)
        if self.objective.prepare:
            with seeded(self.config.seed, "prepare"):
                self.objective.prepare(self.discriminator)

    def trained(self) -> Networks:
        """Return what the next stages start from: the averages, and the encoder."""
        return Networks(*self.averages, self.networks.encoder)

    def step(self, index: int) -> dict[str, Tensor]:
        """Train the discriminator, and the generator every `discriminator_steps` steps."""
        turn = (index + 1) % self.objective.discriminator_steps == 0
        real = self._grown(index, self.batches(index))
        with torch.set_grad_enabled(turn), self.runtime.autocast():
            fake = self.generator(self._latent(index, len(real)))
        real, seen = self._view(index, "real", real), self._view(index, "fake", fake.float())
        losses = self._discriminator_step(index, real, seen.detach())
        if turn:
            losses |= self._generator_step(real, seen)
        self._average_step(index)
        return losses

    def _grown(self, index: int, real: Tensor) -> Tensor:
        """Grow growing networks; return real images with only the detail that these can make."""
        for network in (self.generator, self.discriminator):
            if isinstance(network, Growing):
                network.grow(self._share(index))
        return self.discriminator.faded(real) if isinstance(self.discriminator, Growing) else real

    def _share(self, index: int) -> float:
        return index * self.config.batch_size / (self.config.images_shown or 1)

    def _latent(self, index: int, n: int) -> Tensor:
        # Latents are drawn on the CPU, so they are the same on every device.
        z = self._drawn(torch.randn, "latent", index, n, self.config.latent_dim)
        return z.to(self.runtime.device)

    def _drawn(
        self, draw: Callable[..., Tensor], name: str, index: int, n: int, *shape: int
    ) -> Tensor:
        """Draw numbers (n, *shape) for the n images that this process has of a batch."""
        generator = random_stream(self.config.seed, name, index)
        return shares.current().drawn(lambda n: draw(n, *shape, generator=generator), n)

    def _view(self, index: int, which: str, images: Tensor) -> Tensor:
        if not self.views:
            return images
        generator = random_stream(self.config.seed, f"view-{which}", index)
        return discriminator_view(images, self.views, generator)

    def _discriminator_step(self, index: int, real: Tensor, fake: Tensor) -> dict[str, Tensor]:
        with self.runtime.autocast():
            realness = self._compare(real, fake)
        loss = self.objective.discriminator_loss(*realness)
        losses = {"discriminator": loss.detach()}
        if self.objective.penalty and index % self.objective.penalty_every == 0:
            penalty = self._penalty(self.objective.penalty, index, real, fake)
            loss = loss + penalty * self.objective.penalty_every
            losses["penalty"] = penalty.detach()
        self._descend("discriminator", loss)
        if self.objective.constrain:
            self.objective.constrain(self.opponent)
        return losses

    def _compare(self, real: Tensor, fake: Tensor) -> tuple[Tensor, Tensor]:
        return self.discriminator.compare(real, fake)

    def _penalty(self, penalty: Penalty, index: int, real: Tensor, fake: Tensor) -> Tensor:
        # Each image has one mixing weight. All is float32, because second derivatives lose too much
        # in bfloat16.
        alpha = self._drawn(torch.rand, "mix", index, len(real), 1, 1, 1)
        return penalty(self.opponent, real, fake, alpha.to(real.device))

    def _generator_step(self, real: Tensor, fake: Tensor) -> dict[str, Tensor]:
        self.discriminator.requires_grad_(False)
        with self.runtime.autocast():
            features = self.discriminator.features(fake)
            loss = self.objective.generator_loss(self.discriminator.realness(features))
            losses = {"generator": loss.detach()}
            if self.objective.variety:
                gap = self._variety_gap(real, features)
                # The term is in units of the loss. With a clipped critic the loss may be thousands
                # of times smaller.
                size = shares.current().mean(loss.detach()).abs()
                loss = loss + self.objective.variety * size * gap
                losses["variety"] = gap.detach()
        self._descend("generator", loss)
        self.discriminator.requires_grad_(True)
        return losses

    def _variety_gap(self, real: Tensor, features: list[Tensor]) -> Tensor:
        """Return how far the variety of generated features is from that of real ones, a scalar."""
        with torch.no_grad():
            usual = self.discriminator.features(real)
        return spread_gap(usual, features)

    def _descend(self, name: str, loss: Tensor) -> None:
        optimizer = self.optimizers[name]
        rate = self.config.learning_rate or self.objective.learning_rate
        set_rate(optimizer, rate * self.slow_down)
        optimizer.zero_grad(set_to_none=True)
        shares.current().backward(loss, [optimizer])
        optimizer.step()

    @torch.no_grad()
    def _average_step(self, index: int) -> None:
        # At first the half-life is a tenth of the images shown: early weights are worth nothing.
        shown = (index + 1) * self.config.batch_size
        half_life = min(self.config.ema_images, max(shown / 10, 1))
        keep = 0.5 ** (self.config.batch_size / half_life)
        for average, network in self.followed:
            state = plain_state(network)
            for key, mean in average.state_dict().items():
                value = state[key]
                if value.is_floating_point():
                    mean.lerp_(value, 1 - keep)
                else:
                    mean.copy_(value)
            if isinstance(average, Growing):
                average.grow(self._share(index + 1))  # full size after the last step


def sample(generator: nn.Module, n: int, latent_dim: int, seed: int, name: str) -> Tensor:
    """Generate images (n, c, s, s), float32 in [-1, 1], from latents of a named random stream.

    The generator must be in evaluation mode.
    """
    return torch.cat(list(samples(generator, n, latent_dim, seed, name)))


@torch.no_grad()
def samples(
    generator: nn.Module, n: int, latent_dim: int, seed: int, name: str
) -> Iterator[Tensor]:
    """Yield the images of `sample`, a few at a time: all at once can take many gigabytes."""
    z = torch.randn(n, latent_dim, generator=random_stream(seed, name))
    device = next(generator.parameters()).device
    for part in torch.split(z, SAMPLED):
        yield generator(part.to(device)).float()
