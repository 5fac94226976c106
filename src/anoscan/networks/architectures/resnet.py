"""Residual networks with a LayerNorm critic, as in the f-AnoGAN paper; several times slower.

The networks are those of Schlegl et al. 2019, "f-AnoGAN: Fast unsupervised anomaly detection with
generative adversarial networks" (doi 10.1016/j.media.2019.01.010), after Gulrajani et al. 2017
(arXiv 1704.00028). They have pre-activation residual blocks, nearest-neighbour upsampling and
mean-pool downsampling. Generator and encoder have BatchNorm. LayerNorm is over (channels, height,
width), with one scale and one shift for each channel. The original computes the same, and so the
weights do not depend on the image size.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable

from torch import Tensor, nn

from anoscan.networks.architectures import (
    Architecture,
    Crop,
    Discriminator,
    EvenPad,
    Flatten,
    Shape,
    Unflatten,
    initialise,
    pyramid,
    widths,
)
from anoscan.networks.batch_norm import BatchNorm2d


def _layer_norm(channels: int) -> nn.Module:
    return nn.GroupNorm(1, channels)


class ResidualBlock(nn.Module):
    """Norm, ReLU and 3x3 convolution, all twice, beside a shortcut.

    The shortcut is a 1x1 convolution, or the identity where neither channels nor sides change.
    `before` and `after` are channels, for which `norm` makes a layer. `up` acts on both branches
    before their first convolution, and `down` after their last.
    """

    def __init__(
        self,
        before: int,
        after: int,
        norm: Callable[[int], nn.Module],
        *,
        up: nn.Module | None = None,
        down: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.residual = nn.Sequential(
            norm(before),
            nn.ReLU(),
            up or nn.Identity(),
            nn.Conv2d(before, after, 3, padding=1, bias=False),
            norm(after),
            nn.ReLU(),
            nn.Conv2d(after, after, 3, padding=1),
            down or nn.Identity(),
        )
        same = before == after and up is None and down is None
        self.shortcut = (
            nn.Identity()
            if same
            else nn.Sequential(
                up or nn.Identity(), nn.Conv2d(before, after, 1), down or nn.Identity()
            )
        )

    def forward(self, x: Tensor) -> Tensor:
        """Map (n, before, h, w) to (n, after, h', w')."""
        out: Tensor = self.residual(x) + self.shortcut(x)
        return out


def _up(side: int) -> nn.Module:
    return nn.Sequential(nn.Upsample(scale_factor=2), Crop(side))


def _down() -> nn.Module:
    return nn.Sequential(EvenPad(), nn.AvgPool2d(2))


def generator(shape: Shape) -> nn.Module:
    """Build a linear layer to 2x2, residual blocks that upsample, a 3x3 convolution, and tanh."""
    sides = pyramid(shape.size)
    channels = widths(shape, len(sides))
    top, side = channels[-1], sides[-1]
    layers: list[nn.Module] = [
        nn.Linear(shape.latent_dim, top * side * side),
        Unflatten(top, side),
    ]
    for level in range(len(sides) - 1, 0, -1):
        layers.append(
            ResidualBlock(
                channels[level], channels[level - 1], BatchNorm2d, up=_up(sides[level - 1])
            )
        )
    layers += [
        BatchNorm2d(channels[0]),
        nn.ReLU(),
        nn.Conv2d(channels[0], shape.channels, 3, padding=1),
        nn.Tanh(),
    ]
    return initialise(nn.Sequential(*layers))


def _blocks(shape: Shape, norm: Callable[[int], nn.Module]) -> tuple[list[nn.Module], int]:
    sides = pyramid(shape.size)
    channels = widths(shape, len(sides))
    first = nn.Conv2d(shape.channels, channels[0], 3, padding=1)
    blocks: list[nn.Module] = [
        ResidualBlock(before, after, norm, down=_down())
        for before, after in itertools.pairwise(channels)
    ]
    # The stem belongs to the first block, so that every feature map is a block's output.
    blocks[0] = nn.Sequential(first, blocks[0])
    return blocks, channels[-1] * sides[-1] ** 2


def discriminator(shape: Shape) -> Discriminator:
    """Build residual blocks with LayerNorm that downsample; no activation precedes the heads."""
    blocks, flat = _blocks(shape, _layer_norm)
    network = Discriminator(blocks, flat)
    initialise(network)
    return network


def encoder(shape: Shape) -> nn.Module:
    """Build the trunk of the critic with BatchNorm, also at its end, and a linear layer."""
    blocks, flat = _blocks(shape, BatchNorm2d)
    # Sums of residuals have no fixed scale: a wide trunk gave latents far from the prior.
    end = [BatchNorm2d(widths(shape, len(blocks) + 1)[-1]), nn.ReLU(), Flatten()]
    return initialise(nn.Sequential(*blocks, *end, nn.Linear(flat, shape.latent_dim)))


ENTRY = Architecture(generator, discriminator, encoder, paper="Schlegl et al. 2019")
