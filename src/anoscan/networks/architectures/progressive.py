"""Networks that grow from 4x4 to full size during the game: steadier on large images, slow.

Karras et al. 2018, "Progressive Growing of GANs for Improved Quality, Stability, and Variation"
(arXiv 1710.10196): fade-in of new layers (section 2), minibatch standard deviation (section 3),
equalised learning rate (4.1, `architectures.equalise`, undone in the networks that are kept),
PixelNorm in the generator (4.2). Departures: tanh at the end, because images lie in [-1, 1]; the
latent itself is not normalised, because the encoder has to find all of it; odd sides are padded.
The encoder, which that paper does not have, has BatchNorm.

The minibatch standard deviation makes an image's realness depend on its neighbours. It enters
between the last features and the realness head, and only in training: features and turns never
see it, and in evaluation it is the constant that batches of real images usually gave. So no score
depends on what else is scored. It is given relative to that constant (the paper gives it as it is),
which a short training hears: otherwise the generator stays with one image.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable

import torch
from torch import Tensor, nn

from anoscan.networks.architectures import (
    Architecture,
    Crop,
    Discriminator,
    EvenPad,
    Flatten,
    Growing,
    Shape,
    Unflatten,
    blend,
    enlarged,
    flat,
    halved,
    initialise,
    pyramid,
    spread,
    widths,
)

SLOPE = 0.2
MEMORY = 0.9  # of the usual spread of real batches, a step


class PixelNorm(nn.Module):
    """Divides the channels at each place by their root mean square."""

    def forward(self, x: Tensor) -> Tensor:
        """Map (n, c, h, w) to the same shape."""
        return x * (x.square().mean(1, keepdim=True) + 1e-8).rsqrt()


def _convolve(before: int, after: int) -> list[nn.Module]:
    return [nn.Conv2d(before, after, 3, padding=1), nn.LeakyReLU(SLOPE)]


def _normalised(before: int, after: int) -> list[nn.Module]:
    convolution = nn.Conv2d(before, after, 3, padding=1, bias=False)
    return [convolution, nn.BatchNorm2d(after), nn.LeakyReLU(SLOPE)]


def _trunk(
    channels: list[int], convolve: Callable[[int, int], list[nn.Module]] = _convolve
) -> list[nn.Module]:
    return [
        nn.Sequential(
            *convolve(before, before), *convolve(before, after), EvenPad(), nn.AvgPool2d(2)
        )
        for before, after in itertools.pairwise(channels)
    ]


class Generator(Growing, nn.Module):
    """Linear layer to 2x2, then blocks that upsample; each resolution can make an image."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.sides = pyramid(shape.size)
        channels = widths(shape, len(self.sides))
        top, side = channels[-1], self.sides[-1]
        self.first = nn.Sequential(
            nn.Linear(shape.latent_dim, top * side * side),
            Unflatten(top, side),
            nn.LeakyReLU(SLOPE),
            PixelNorm(),
        )
        self.blocks = nn.ModuleList(
            nn.Sequential(
                nn.Upsample(scale_factor=2),
                Crop(self.sides[level]),
                *_convolve(channels[level + 1], channels[level]),
                PixelNorm(),
                *_convolve(channels[level], channels[level]),
                PixelNorm(),
            )
            for level in range(len(self.sides) - 1)
        )
        initialise(self, slope=SLOPE)
        self.to_image = nn.ModuleList(nn.Conv2d(c, shape.channels, 1) for c in channels[:-1])
        initialise(self.to_image, slope=1.0)

    def forward(self, z: Tensor) -> Tensor:
        """Latents (n, d) to images (n, c, s, s) in [-1, 1], no finer than the level reached."""
        x = before = self.first(z)
        for level in range(len(self.blocks) - 1, self.level - 1, -1):
            before, x = x, self.blocks[level](x)
        image = self.to_image[self.level](x)
        if self.alpha < 1:
            coarse = self.to_image[self.level + 1](before)
            image = blend(enlarged(coarse, self.sides[self.level]), image, self.alpha)
        return self.enlarged(image.tanh())


class GrowingDiscriminator(Growing, Discriminator):
    """Mirror of the generator; `usual_spread` () is the running mean over real batches."""

    usual_spread: Tensor

    def __init__(self, shape: Shape) -> None:
        sides = pyramid(shape.size)
        channels = widths(shape, len(sides))
        super().__init__(_trunk(channels), channels[-1] * sides[-1] ** 2)
        self.sides = sides
        self.from_image = nn.ModuleList(
            nn.Sequential(nn.Conv2d(shape.channels, c, 1), nn.LeakyReLU(SLOPE))
            for c in channels[:-1]
        )
        self.mix = nn.Sequential(*_convolve(channels[-1] + 1, channels[-1]))
        self.register_buffer("usual_spread", torch.ones(()))
        initialise(self, slope=SLOPE)

    def features(self, x: Tensor) -> list[Tensor]:
        """Outputs of the blocks of the levels reached, finest first."""
        x = self.shrunk(x, self.level)
        inside = self.blocks[self.level](self.from_image[self.level](x))
        if self.alpha < 1:
            coarse = self.from_image[self.level + 1](halved(x))
            inside = blend(coarse, inside, self.alpha)
        outputs = [inside]
        for block in self.blocks[self.level + 1 :]:
            outputs.append(block(outputs[-1]))
        return outputs

    def realness(self, features: list[Tensor]) -> Tensor:
        """Realness (n,) from `features`; in training, all of one kind: real or generated."""
        last = features[-1]
        relative = spread(last) / self.usual_spread if self.training else last.new_ones(())
        channel = relative.to(last.dtype).expand(len(last), 1, *last.shape[2:])
        logits: Tensor = self.head(flat(self.mix(torch.cat([last, channel], 1))))
        return logits.squeeze(1).float()

    def compare(self, real: Tensor, fake: Tensor) -> tuple[Tensor, Tensor]:
        """Realness (n,) of both batches; the spread of one does not enter the other's."""
        last = self.features(torch.cat([real, fake]))[-1]
        of_real, of_fake = last.chunk(2)
        judged = self.realness([of_real]), self.realness([of_fake])
        if self.training:
            with torch.no_grad():
                usual = self.usual_spread.lerp(spread(of_real), 1 - MEMORY)
            # Not in place: the graph of what was judged holds the old one.
            self.usual_spread = usual
        return judged


def encoder(shape: Shape) -> nn.Module:
    """Trunk of the discriminator at full size with BatchNorm, then a linear layer to the latent."""
    sides = pyramid(shape.size)
    channels = widths(shape, len(sides))
    # Without BatchNorm latents stayed near zero: mean square .03 to .16, where the prior has 1.
    network = nn.Sequential(
        nn.Conv2d(shape.channels, channels[0], 1),
        nn.LeakyReLU(SLOPE),
        *_trunk(channels, _normalised),
        Flatten(),
        nn.Linear(channels[-1] * sides[-1] ** 2, shape.latent_dim),
    )
    return initialise(network, slope=SLOPE)


ENTRY = Architecture(Generator, GrowingDiscriminator, encoder, paper="Karras et al. 2018")
