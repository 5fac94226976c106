"""Network architectures: one file each, all to the same contract.

- ``generator(z)``: latent (n, d) float32, drawn from N(0, I), to images (n, c, s, s) in [-1, 1].
- ``discriminator(x)``: images to one unbounded number each, (n,); higher is more real. A critic
  (WGAN) is the same network under another objective.
- ``discriminator.features(x)``: the activations of its blocks, from fine to coarse, each
  (n, c_i, s_i, s_i). The last one is the ``f(x)`` of the f-AnoGAN paper.
- ``discriminator.turn(features)``: logits (n, 4) of the quarter turn that an image was given.
- ``encoder(x)``: images to latents (n, d), unbounded.

Discriminators have no BatchNorm and no Dropout: both make one image's output depend on the others
of its batch, which a per-image gradient penalty does not survive.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate


@dataclass(frozen=True)
class Shape:
    """What the networks of a model have in common."""

    size: int
    channels: int
    latent_dim: int
    width: int


class Discriminator(nn.Module):
    """A stack of blocks and two linear heads on the last one: realness, and quarter turn.

    Parameters
    ----------
    blocks : list of nn.Module
        Applied in turn; their outputs are the features.
    flat : int
        Numbers in the output of the last block.
    """

    def __init__(self, blocks: list[nn.Module], flat: int) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(blocks)
        self.head = nn.Linear(flat, 1)
        self.turn_head = nn.Linear(flat, 4)

    def features(self, x: Tensor) -> list[Tensor]:
        """Outputs of all blocks for images (n, c, s, s), finest first."""
        outputs = []
        for block in self.blocks:
            x = block(x)
            outputs.append(x)
        return outputs

    def judge(self, features: list[Tensor]) -> Tensor:
        """Realness (n,) from `features`."""
        logits: Tensor = self.head(flat(features[-1]))
        return logits.squeeze(1).float()

    def turn(self, features: list[Tensor]) -> Tensor:
        """Logits (n, 4) of the quarter turn, from `features`."""
        logits: Tensor = self.turn_head(flat(features[-1]))
        return logits.float()

    def forward(self, x: Tensor) -> Tensor:
        """Realness (n,) of images (n, c, s, s); higher is more real."""
        return self.judge(self.features(x))


@dataclass(frozen=True)
class Architecture:
    """How to build the three networks of one architecture."""

    generator: Callable[[Shape], nn.Module]
    discriminator: Callable[[Shape], Discriminator]
    encoder: Callable[[Shape], nn.Module]
    paper: str


@dataclass
class Networks:
    """The networks of one model; `generator` is the one that scores (the moving average)."""

    generator: nn.Module
    discriminator: Discriminator
    encoder: nn.Module

    def frozen(self) -> Networks:
        """Set all three to evaluation and their weights to constants; returns self.

        Channels-last for all, so that a trained and a loaded model compute alike to the last bit.
        """
        for network in (self.generator, self.discriminator, self.encoder):
            network.eval().requires_grad_(False)
            network.to(memory_format=torch.channels_last)
        return self


def build(architecture: Architecture, shape: Shape) -> Networks:
    """Networks with fresh weights, drawn from torch's global generator."""
    return Networks(
        architecture.generator(shape),
        architecture.discriminator(shape),
        architecture.encoder(shape),
    )


def pyramid(size: int, *, smallest: int = 2) -> list[int]:
    """Sides of the feature maps of an image halved until `smallest` or less, finest first.

    Odd sides round up, so that any image size works.

    >>> pyramid(28)
    [28, 14, 7, 4, 2]
    """
    sides = [size]
    while sides[-1] > smallest:
        sides.append((sides[-1] + 1) // 2)
    return sides


def widths(shape: Shape, levels: int) -> list[int]:
    """Channels of each level, finest first: doubling, and at most four times the base width."""
    return [min(shape.width * 2**level, shape.width * 4) for level in range(levels)]


def flat(x: Tensor) -> Tensor:
    """Maps (n, c, h, w) as vectors (n, h * w * c), channels last.

    In that order the gradient comes back channels-last too; otherwise every convolution before it
    would be computed in the slow layout.
    """
    return x.permute(0, 2, 3, 1).flatten(1)


class Flatten(nn.Module):
    """`flat` as a layer."""

    def forward(self, x: Tensor) -> Tensor:
        """Map (n, c, h, w) to (n, h * w * c)."""
        return flat(x)


class EvenPad(nn.Module):
    """Repeats the last row or column of odd-sided maps, so that halving rounds up."""

    def forward(self, x: Tensor) -> Tensor:
        """Map (n, c, h, w) to one of even sides."""
        height, width = x.shape[-2:]
        if height % 2 or width % 2:
            x = nn.functional.pad(x, (0, width % 2, 0, height % 2), mode="replicate")
        return x


class Crop(nn.Module):
    """Cuts maps to a side, which undoes `EvenPad` on the way up."""

    def __init__(self, side: int) -> None:
        super().__init__()
        self.side = side

    def forward(self, x: Tensor) -> Tensor:
        """Map (n, c, h, w) to (n, c, side, side)."""
        return x[..., : self.side, : self.side]


class Double(nn.Module):
    """Doubles the sides of maps by bilinear interpolation."""

    def forward(self, x: Tensor) -> Tensor:
        """Map (n, c, h, w) to (n, c, 2h, 2w)."""
        return interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)


class Unflatten(nn.Module):
    """Vectors (n, side * side * c) to channels-last maps (n, c, side, side)."""

    def __init__(self, channels: int, side: int) -> None:
        super().__init__()
        self.channels, self.side = channels, side

    def forward(self, x: Tensor) -> Tensor:
        """Reshape, keeping the batch."""
        return x.view(len(x), self.side, self.side, self.channels).permute(0, 3, 1, 2)


def initialise(network: nn.Module, *, slope: float = 0.0) -> nn.Module:
    """He initialisation of every convolution and linear layer, biases zero; returns `network`."""
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.ConvTranspose2d | nn.Linear):
            nn.init.kaiming_normal_(module.weight, a=slope)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    return network


def parameter_count(network: nn.Module) -> int:
    """Number of trainable numbers of a network."""
    return sum(p.numel() for p in network.parameters())
