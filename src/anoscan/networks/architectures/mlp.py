"""Fully connected networks as in the original GAN; they are the fastest, for small images only.

The networks are those of Goodfellow et al. 2014, "Generative Adversarial Nets" (arXiv 1406.2661),
section 5, with what became standard since. The generator has BatchNorm and ReLU, the discriminator
has LeakyReLU and no Dropout. The networks do not know which pixels are neighbours. Hidden vectors
(n, c) are features (n, c, 1, 1).
"""

from __future__ import annotations

import itertools
from functools import partial

from torch import nn

from anoscan.networks.architectures import (
    SLOPE,
    Architecture,
    Flatten,
    Shape,
    Unflatten,
    discriminator_of,
    encoder_of,
    initialise,
)
from anoscan.networks.batch_norm import BatchNorm1d

MOST_WEIGHTS = 2**24  # at most, between the pixels and the first hidden layer: 64 MB


def _hidden(shape: Shape) -> list[int]:
    """Lengths of the hidden layers from the pixels on: 512, 256, 128 at the default width."""
    pixels = shape.channels * shape.size**2
    widest = min(16 * shape.width, MOST_WEIGHTS // pixels)
    return [max(4, widest // 2**layer) for layer in range(3)]


def generator(shape: Shape) -> nn.Module:
    """Build linear layers with BatchNorm and ReLU, then one to all pixels, and tanh."""
    layers: list[nn.Module] = []
    before = shape.latent_dim
    for after in reversed(_hidden(shape)):
        layers += [nn.Linear(before, after), BatchNorm1d(after), nn.ReLU(inplace=True)]
        before = after
    layers += [
        nn.Linear(before, shape.channels * shape.size**2),
        Unflatten(shape.channels, shape.size),
        nn.Tanh(),
    ]
    return initialise(nn.Sequential(*layers))


def _blocks(shape: Shape) -> tuple[list[nn.Module], int]:
    sides = [shape.channels * shape.size**2, *_hidden(shape)]
    blocks: list[nn.Module] = [
        nn.Sequential(
            Flatten(),
            nn.Linear(before, after),
            nn.LeakyReLU(SLOPE, inplace=True),
            Unflatten(after, 1),
        )
        for before, after in itertools.pairwise(sides)
    ]
    return blocks, sides[-1]


ENTRY = Architecture(
    generator,
    partial(discriminator_of, _blocks),
    partial(encoder_of, _blocks),
    paper="Goodfellow et al. 2014",
)
