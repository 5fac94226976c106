"""Networks that grow from 4x4 to full size in training; steadier on large images, but slow.

Karras et al. 2018, "Progressive Growing of GANs for Improved Quality, Stability, and Variation"
(arXiv 1710.10196), describe what these networks have:

- New layers fade in (section 2).
- The discriminator is given the minibatch standard deviation (section 3).
- Learning rates are equalised (section 4.1, `architectures.equalise`). In the networks that are
  kept nothing is left of it.
- The generator has PixelNorm (section 4.2).

There are three departures. Tanh is the last layer, because images lie in [-1, 1]. The latent is not
normalised, because the encoder has to find all of it. Odd sides are padded. The paper has no
encoder; here it has BatchNorm.

The minibatch standard deviation makes the realness of an image depend on the others of its batch.
It enters only in training, after the features. In evaluation it is a constant, the mean over
batches of real images, so no score depends on what else is scored. It is given relative to that
constant. As the paper gives it, it has too little effect in a short training, and the generator
makes only one image.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable

import torch
from torch import Tensor, nn

from anoscan.networks.architectures import (
    SLOPE,
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
from anoscan.networks.batch_norm import BatchNorm2d

MEMORY = 0.9  # share of the running mean of the spread that is kept in each step


class PixelNorm(nn.Module):
    """Divides the channels at each place by their root mean square."""

    def forward(self, x: Tensor) -> Tensor:
        """Map (n, c, h, w) to the same shape."""
        return x * (x.square().mean(1, keepdim=True) + 1e-8).rsqrt()


def _convolve(before: int, after: int) -> list[nn.Module]:
    return [nn.Conv2d(before, after, 3, padding=1), nn.LeakyReLU(SLOPE)]


def _normalised(before: int, after: int) -> list[nn.Module]:
    convolution = nn.Conv2d(before, after, 3, padding=1, bias=False)
    return [convolution, BatchNorm2d(after), nn.LeakyReLU(SLOPE)]


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
    """Has a linear layer to 2x2, then blocks that upsample; each resolution can give images."""

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
        """Map latents (n, d) to images (n, c, s, s) in [-1, 1], as fine as the level reached."""
        x = before = self.first(z)
        for level in range(len(self.blocks) - 1, self.level - 1, -1):
            before, x = x, self.blocks[level](x)
        image = self.to_image[self.level](x)
        if self.alpha < 1:
            coarse = self.to_image[self.level + 1](before)
            image = blend(enlarged(coarse, self.sides[self.level]), image, self.alpha)
        return self.enlarged(image.tanh())


class GrowingDiscriminator(Growing, Discriminator):
    """Mirrors the generator.

    `usual_spread` is the running mean of `spread` of the last features over batches of real images.
    """

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
        """Outputs of the blocks of the levels reached for images (n, c, s, s), finest first."""
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
        """Realness (n,) from `features`. In training, all must be real or all generated."""
        last = features[-1]
        relative = spread(last) / self.usual_spread if self.training else last.new_ones(())
        channel = relative.to(last.dtype).expand(len(last), 1, *last.shape[2:])
        logits: Tensor = self.head(flat(self.mix(torch.cat([last, channel], 1))))
        return logits.squeeze(1).float()

    def compare(self, real: Tensor, fake: Tensor) -> tuple[Tensor, Tensor]:
        """Realness (n,) of both batches; the spread of one does not enter the other's.

        In training this updates `usual_spread`.
        """
        last = self.features(torch.cat([real, fake]))[-1]
        of_real, of_fake = last.chunk(2)
        judged = self.realness([of_real]), self.realness([of_fake])
        if self.training:
            with torch.no_grad():
                usual = self.usual_spread.lerp(spread(of_real), 1 - MEMORY)
            # This is not done in place, since the graph of `judged` holds the old tensor.
            self.usual_spread = usual
        return judged


def encoder(shape: Shape) -> nn.Module:
    """Build the full-size trunk of the discriminator with BatchNorm, and a linear layer."""
    sides = pyramid(shape.size)
    channels = widths(shape, len(sides))
    # Without BatchNorm latents stayed near zero: their mean square was .03 to .16, not 1 as in the
    # prior.
    network = nn.Sequential(
        nn.Conv2d(shape.channels, channels[0], 1),
        nn.LeakyReLU(SLOPE),
        *_trunk(channels, _normalised),
        Flatten(),
        nn.Linear(channels[-1] * sides[-1] ** 2, shape.latent_dim),
    )
    return initialise(network, slope=SLOPE)


ENTRY = Architecture(Generator, GrowingDiscriminator, encoder, paper="Karras et al. 2018")
