"""Fully connected networks, the plain GAN: fastest, for small images; knows nothing of places.

Goodfellow et al. 2014, "Generative Adversarial Nets" (arXiv 1406.2661), section 5, with what came
to be usual since: BatchNorm and ReLU in the generator, LeakyReLU without Dropout in the
discriminator. Hidden vectors (n, c) are features (n, c, 1, 1).
"""

from __future__ import annotations

import itertools

from torch import nn

from anoscan.networks.architectures import (
    Architecture,
    Discriminator,
    Flatten,
    Shape,
    Unflatten,
    initialise,
)

SLOPE = 0.2
MOST_WEIGHTS = 2**24  # between the pixels and the first hidden layer: 64 MB


def _hidden(shape: Shape) -> list[int]:
    """Sides of the hidden layers, from the pixels on: 512, 256 and 128 at the default width."""
    pixels = shape.channels * shape.size**2
    widest = min(16 * shape.width, MOST_WEIGHTS // pixels)
    return [max(4, widest // 2**layer) for layer in range(3)]


def generator(shape: Shape) -> nn.Module:
    """Linear layers with BatchNorm and ReLU, then one to all pixels and tanh."""
    layers: list[nn.Module] = []
    before = shape.latent_dim
    for after in reversed(_hidden(shape)):
        layers += [nn.Linear(before, after), nn.BatchNorm1d(after), nn.ReLU(inplace=True)]
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


def discriminator(shape: Shape) -> Discriminator:
    """Three hidden layers with LeakyReLU, each a block."""
    blocks, flat = _blocks(shape)
    network = Discriminator(blocks, flat)
    initialise(network, slope=SLOPE)
    return network


def encoder(shape: Shape) -> nn.Module:
    """Trunk of the discriminator, then a linear layer to the latent."""
    blocks, flat = _blocks(shape)
    trunk = nn.Sequential(*blocks, Flatten(), nn.Linear(flat, shape.latent_dim))
    return initialise(trunk, slope=SLOPE)


ENTRY = Architecture(generator, discriminator, encoder, paper="Goodfellow et al. 2014")
