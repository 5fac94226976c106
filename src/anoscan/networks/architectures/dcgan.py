"""Strided convolutions as in AnoGAN, of any width; they are fast, and good up to 128x128.

The networks are those of Radford et al. 2015, "Unsupervised Representation Learning with Deep
Convolutional Generative Adversarial Networks" (arXiv 1511.06434), as AnoGAN uses them (Schlegl et
al. 2017, arXiv 1703.05921). There are three departures:

- The discriminator and the encoder have no BatchNorm, so that no image's output depends on the
  others of its batch.
- Odd sides are padded, so that any size works.
- The generator repeats pixels and convolves them, instead of a transposed convolution. Transposed
  convolutions draw checkerboards (Odena et al. 2016, doi 10.23915/distill.00003). At 64x64 these
  are all that a discriminator needs to win, and then the generator learns nothing.
"""

from __future__ import annotations

import itertools
from functools import partial

from torch import nn

from anoscan.networks.architectures import (
    SLOPE,
    Architecture,
    Crop,
    DoublingConv,
    EvenPad,
    Shape,
    Unflatten,
    discriminator_of,
    encoder_of,
    initialise,
    pyramid,
    widths,
)
from anoscan.networks.batch_norm import BatchNorm2d


def generator(shape: Shape) -> nn.Module:
    """Build a linear layer to 2x2, doublings with convolution, BatchNorm and ReLU, and tanh."""
    sides = pyramid(shape.size)
    channels = widths(shape, len(sides) - 1)
    top, side = channels[-1], sides[-1]
    layers: list[nn.Module] = [
        nn.Linear(shape.latent_dim, top * side * side),
        Unflatten(top, side),
        BatchNorm2d(top),
        nn.ReLU(inplace=True),
    ]
    for level in range(len(channels) - 1, 0, -1):
        before, after = channels[level], channels[level - 1]
        layers += [
            DoublingConv(before, after),
            Crop(sides[level]),
            BatchNorm2d(after),
            nn.ReLU(inplace=True),
        ]
    layers += [
        DoublingConv(channels[0], shape.channels, bias=True),
        Crop(sides[0]),
        nn.Tanh(),
    ]
    return initialise(nn.Sequential(*layers))


def _blocks(shape: Shape) -> tuple[list[nn.Module], int]:
    sides = pyramid(shape.size)
    channels = [shape.channels, *widths(shape, len(sides) - 1)]
    blocks: list[nn.Module] = [
        nn.Sequential(
            EvenPad(),
            nn.Conv2d(before, after, 4, stride=2, padding=1),
            nn.LeakyReLU(SLOPE, inplace=True),
        )
        for before, after in itertools.pairwise(channels)
    ]
    return blocks, channels[-1] * sides[-1] ** 2


ENTRY = Architecture(
    generator,
    partial(discriminator_of, _blocks),
    partial(encoder_of, _blocks),
    paper="Radford et al. 2015",
)
