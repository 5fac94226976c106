"""The GAN stage of pairs: generator and encoder are trained against a discriminator of (x, z).

It follows Donahue et al. 2016 (arXiv 1605.09782) and Dumoulin et al. 2016 (arXiv 1606.00704). Real
pairs are (x, E(x)), generated pairs are (G(z), z). When the discriminator cannot distinguish them,
E inverts G. Short trainings stay far from there. So E also learns that G(E(x)) = x (ALICE, Li et
al. 2017, arXiv 1709.01215, equation 8), with two departures:

- The residual is squared. The absolute residual of strokes on black is least where all is black.
- G does not learn from the residual, because it lost variety.
"""

from __future__ import annotations

import copy
import math

import torch
from torch import Tensor, nn
from torch.nn.functional import mse_loss

from anoscan.core import registry, shares
from anoscan.core.runtime import seeded
from anoscan.networks.architectures import SLOPE, Discriminator, Networks, flat, initialise
from anoscan.networks.encoders import Encoder
from anoscan.networks.gan_stage import GanStage

HIDDEN = 256
CYCLE = 50.0  # weight of the mean (x - G(E(x)))^2 in the loss


class PairDiscriminator(nn.Module):
    """Gives the realness of pairs, by the trunk of an image discriminator and a small network of z.

    Of the trunk only the features are used, not its own heads.
    """

    def __init__(self, trunk: Discriminator, channels: int, latent_dim: int) -> None:
        super().__init__()
        self.trunk, self.channels, self.latent_dim = trunk, channels, latent_dim
        self.latent = nn.Sequential(
            nn.Linear(latent_dim, HIDDEN),
            nn.LeakyReLU(SLOPE),
            nn.Linear(HIDDEN, HIDDEN),
            nn.LeakyReLU(SLOPE),
        )
        self.pair = nn.Sequential(
            nn.Linear(trunk.head.in_features + HIDDEN, HIDDEN),
            nn.LeakyReLU(SLOPE),
            nn.Linear(HIDDEN, 1),
        )
        for network in (self.latent, self.pair):
            initialise(network, slope=SLOPE)

    @property
    def turn_head(self) -> nn.Module:
        """Rotation head of the trunk, which has no part in the GAN stage."""
        return self.trunk.turn_head

    def forward(self, pairs: Tensor) -> Tensor:
        """Return the realness (n,) of pairs as `pack` makes them; higher is more real."""
        x, z = unpack(pairs, self.channels, self.latent_dim)
        seen = torch.cat([flat(self.trunk.features(x)[-1]), self.latent(z)], 1)
        realness: Tensor = self.pair(seen)
        return realness.squeeze(1).float()


def pack(x: Tensor, z: Tensor) -> Tensor:
    """Pack images (n, c, s, s) and latents (n, d) into one tensor (n, s s c + d, 1, 1).

    So an objective can mix pairs, or differentiate by them, as it does with images.
    """
    return torch.cat([flat(x), z], 1)[:, :, None, None]


def unpack(pairs: Tensor, channels: int, latent_dim: int) -> tuple[Tensor, Tensor]:
    """Return the images (n, c, s, s) and latents (n, d) that `pack` was given."""
    vectors = pairs.flatten(1)
    pixels, z = vectors[:, :-latent_dim], vectors[:, -latent_dim:]
    side = math.isqrt(pixels.shape[1] // channels)
    x = pixels.reshape(-1, side, side, channels).permute(0, 3, 1, 2)
    return x.contiguous(memory_format=torch.channels_last), z


class JointStage(GanStage):
    """Trains generator, encoder and a discriminator of pairs; `GanStage` has the parameters.

    Generator and encoder share an optimiser. Both minimise the generator's loss, the encoder with
    the sign of the realness flipped. Afterwards only the trunk of the pair discriminator is kept: a
    discriminator of images with trained features and an untrained realness head.
    """

    def _extend(self) -> None:
        networks, objective, config = self.networks, self.objective, self.config
        self.kind: Encoder = registry.load("encoders", config.encoder)
        self.encoder = networks.encoder
        self.encoder_average = copy.deepcopy(networks.encoder).requires_grad_(False)
        self.followed.append((self.encoder_average, self.encoder))
        with seeded(config.seed, "pair-weights"):
            pairs = PairDiscriminator(
                networks.discriminator, config.channels or 1, config.latent_dim
            )
        if objective.prepare:
            with seeded(config.seed, "prepare-pairs"):
                for part in (pairs.latent, pairs.pair):
                    objective.prepare(part)
        self.opponent = self.pairs = pairs.to(self.runtime.device)
        self.optimizers["generator"].add_param_group({"params": self.encoder.parameters()})
        for part in (self.pairs.latent, self.pairs.pair):
            self.optimizers["discriminator"].add_param_group({"params": part.parameters()})
        self.modules |= {
            "discriminator": self.pairs,
            "encoder": self.encoder,
            "encoder-average": self.encoder_average,
        }

    def trained(self) -> Networks:
        """Return what the next stages start from: the averages of all three networks."""
        return Networks(*self.averages, self.encoder_average)

    def step(self, index: int) -> dict[str, Tensor]:
        """Train the discriminator on pairs, and the others every `discriminator_steps` steps."""
        turn = (index + 1) % self.objective.discriminator_steps == 0
        x = self.batches(index)
        z = self._latent(index, len(x))
        noise = self._drawn(torch.randn, "pair-noise", index, *z.shape)
        with torch.set_grad_enabled(turn), self.runtime.autocast():
            fake = self.generator(z)
            z_hat, _ = self.kind.encode(self.encoder, x, noise.to(z.device))
            missed = self._missed(x, z_hat) if turn else z.new_zeros(())
        real = pack(self._view(index, "real", x), z_hat.float())
        seen = pack(self._view(index, "fake", fake.float()), z)
        losses = self._discriminator_step(index, real.detach(), seen.detach())
        if turn:
            losses |= self._players_step(real, seen, missed)
        self._average_step(index)
        return losses

    def _missed(self, x: Tensor, z_hat: Tensor) -> Tensor:
        """Return the mean squared residual of G(E(x)), from which only E learns.

        G normalises by its running statistics, as in scoring. They stay those of generated images.
        """
        self.generator.eval().requires_grad_(False)
        missed = mse_loss(self.generator(z_hat).float(), x)
        self.generator.train().requires_grad_(True)
        return missed

    def _compare(self, real: Tensor, fake: Tensor) -> tuple[Tensor, Tensor]:
        of_real, of_fake = self.pairs(torch.cat([real, fake])).chunk(2)
        return of_real, of_fake

    def _players_step(self, real: Tensor, fake: Tensor, missed: Tensor) -> dict[str, Tensor]:
        """Train G to make its pairs more real for the discriminator, and E to do the opposite.

        E also learns to invert G. The losses are returned by name, as detached scalars.
        """
        self.pairs.requires_grad_(False)
        with self.runtime.autocast():
            seen_real, seen_fake = self._compare(real, fake)
            loss = self.objective.generator_loss(seen_fake)
            flipped = self.objective.generator_loss(-seen_real)
            found = {"generator": loss, "encoder": flipped, "cycle": missed}
            total = loss + flipped + CYCLE * missed
            if self.objective.variety:
                of_real, of_fake = (self._images(pairs) for pairs in (real, fake))
                gap = self._variety_gap(of_real, self.discriminator.features(of_fake))
                size = shares.current().mean(loss.detach()).abs()
                total = total + self.objective.variety * size * gap
                found["variety"] = gap
        self._descend("generator", total)
        self.pairs.requires_grad_(True)
        return {name: value.detach() for name, value in found.items()}

    def _images(self, pairs: Tensor) -> Tensor:
        return unpack(pairs, self.pairs.channels, self.pairs.latent_dim)[0]
