"""Network architectures: one file each, all to the same contract.

- ``generator(z)``: latent (n, d) float32, drawn from N(0, I), to images (n, c, s, s) in [-1, 1].
- ``discriminator(x)``: images to one unbounded number each, (n,); higher is more real. A critic
  (WGAN) is the same network under another objective.
- ``discriminator.features(x)``: the activations of its blocks, from fine to coarse, each
  (n, c_i, s_i, s_i), vectors with s_i = 1. The last one is the ``f(x)`` of the f-AnoGAN paper.
- ``discriminator.rotation(features)``: logits (n, 4) of the quarter turn that an image was given.
- ``encoder(x)``: images to latents (n, d), unbounded.

Discriminators have no BatchNorm and no Dropout: both make one image's output depend on the others
of its batch, which a per-image gradient penalty does not survive. Features and turns never depend
on neighbours, and in evaluation neither does realness: scores must not.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate
from torch.nn.utils import parametrize

WIDEST_SIDE = 64  # maps finer than this have fewer channels than `Shape.width`
FEWEST_CHANNELS = 8


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

    def realness(self, features: list[Tensor]) -> Tensor:
        """Realness (n,) from `features`."""
        logits: Tensor = self.head(flat(features[-1]))
        return logits.squeeze(1).float()

    def rotation(self, features: list[Tensor]) -> Tensor:
        """Logits (n, 4) of the quarter turn, from `features`."""
        logits: Tensor = self.turn_head(flat(features[-1]))
        return logits.float()

    def forward(self, x: Tensor) -> Tensor:
        """Realness (n,) of images (n, c, s, s); higher is more real."""
        return self.realness(self.features(x))

    def compare(self, real: Tensor, fake: Tensor) -> tuple[Tensor, Tensor]:
        """Realness (n,) of both batches of the game, (n, c, s, s) each, in one pass."""
        # One pass for both: small batches waste a processor.
        of_real, of_fake = self(torch.cat([real, fake])).chunk(2)
        return of_real, of_fake


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

    def to(self, device: torch.device) -> Networks:
        """Put all three on a device, channels-last; returns self."""
        for network in (self.generator, self.discriminator, self.encoder):
            network.to(device=device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        return self

    def frozen(self, device: torch.device | None = None) -> Networks:
        """Set all three to evaluation and their weights to constants; returns self.

        Channels-last for all, so that a trained and a loaded model compute alike to the last bit.

        Parameters
        ----------
        device : torch.device, optional
            Where they go; by default they stay.
        """
        for network in (self.generator, self.discriminator, self.encoder):
            network.eval().requires_grad_(False)
            network.to(device=device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        return self


def build(architecture: Architecture, shape: Shape) -> Networks:
    """Networks with fresh weights, drawn from torch's global generator."""
    return Networks(
        architecture.generator(shape),
        architecture.discriminator(shape),
        architecture.encoder(shape),
    )


class Growing:
    """A generator or discriminator that starts the game at low resolution and grows.

    What goes in and out of it has full size at all times: a generator enlarges what it made, a
    discriminator first shrinks what it is given. `GanStage` calls `grow` before each step with
    the share of the game that is over, so that growth needs no state. A network that was never
    told to grow has full size. Such networks also train at equalised learning rates (`equalise`).

    Attributes
    ----------
    sides : list of int
        Of the feature maps, finest first; see `pyramid`.
    level : int
        Index in `sides` of the resolution reached; 0 is full size.
    alpha : float
        How much of that level has faded in, 0 to 1.
    """

    sides: list[int]
    level: int = 0
    alpha: float = 1.0

    def grow(self, share: float) -> None:
        """Take the resolution that belongs to a share of the game, 0 to 1."""
        self.level, self.alpha = growth(share, len(self.sides) - 2)

    def faded(self, images: Tensor) -> Tensor:
        """Real images (n, c, s, s) without the detail that has not faded in (s stays).

        Karras et al. 2018, section 2: real images fade between resolutions as generated ones do.
        """
        if self.alpha == 1:
            return images
        fine = self.shrunk(images, self.level)
        coarse = enlarged(halved(fine), self.sides[self.level])
        return self.enlarged(blend(coarse, fine, self.alpha))

    def shrunk(self, images: Tensor, level: int) -> Tensor:
        """Images of full size at the side of a level."""
        for _ in range(level):
            images = halved(images)
        return images

    def enlarged(self, images: Tensor) -> Tensor:
        """Images of the side of the current level at full size; `shrunk` undoes it exactly."""
        for side in reversed(self.sides[: self.level]):
            images = enlarged(images, side)
        return images


GROWN = 0.5  # share of the game after which a growing network has full size


def growth(share: float, levels: int) -> tuple[int, float]:
    """Level and alpha after a share of the game, for networks that grow by `levels` halvings.

    Every level below the last takes the same share: half of it as it is, half fading in the next.

    >>> growth(0.0, 2), growth(0.1875, 2), growth(0.25, 2), growth(0.5, 2)
    ((2, 1.0), (1, 0.5), (1, 1.0), (0, 1.0))
    """
    if share >= GROWN or not levels:
        return 0, 1.0
    passed, part = divmod(share / GROWN * levels, 1)
    level = levels - int(passed)
    return (level, 1.0) if part < 0.5 else (level - 1, 2 * part - 1)


def blend(a: Tensor, b: Tensor, share: float) -> Tensor:
    """From `a` at 0 to `b` at 1. Unlike torch.lerp it takes what autocast mixes of precisions."""
    return a * (1 - share) + b * share


def halved(x: Tensor) -> Tensor:
    """Means of 2x2 pixels; an odd side repeats its last row or column first."""
    return nn.functional.avg_pool2d(EvenPad()(x), 2)


def enlarged(x: Tensor, side: int) -> Tensor:
    """Every pixel twice both ways, cut to a side."""
    return nn.functional.interpolate(x, scale_factor=2)[..., :side, :side]


def spread(x: Tensor) -> Tensor:
    """Standard deviation over the batch, mean over all else, scalar float32.

    Karras et al. 2018 (arXiv 1710.10196), section 3.
    """
    return (x.float().var(0, correction=0) + 1e-8).sqrt().mean()


REFERENCE_INPUTS = 512


class _Scaled(nn.Module):
    """A weight as a constant times the parameter that is trained."""

    def __init__(self, scale: float) -> None:
        super().__init__()
        self.scale = scale

    def forward(self, parameter: Tensor) -> Tensor:
        return parameter * self.scale

    def right_inverse(self, weight: Tensor) -> Tensor:
        return weight / self.scale


def equalise(network: nn.Module) -> nn.Module:
    """Give every layer the same relative learning speed; weights stay as they are.

    Karras et al. 2018 (arXiv 1710.10196), section 4.1: what Adam moves is the weight divided by
    He's constant, so that its steps are the same share of every weight. Here that constant is
    relative to a layer of 512 inputs, which keeps its own: so a learning rate means the same
    with and without. The network returned is `network` itself, reparametrised;
    `plain_state` gives its weights as those of a network that never was.
    """
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            scale = (REFERENCE_INPUTS / module.weight[0].numel()) ** 0.5
            parametrize.register_parametrization(module, "weight", _Scaled(scale))
    return network


def plain_state(network: nn.Module) -> dict[str, Tensor]:
    """State of a network as it acts, under the names of one without parametrisations."""
    marker = "parametrizations."
    state = {k: v for k, v in network.state_dict().items() if marker not in k}
    for name, module in network.named_modules():
        if parametrize.is_parametrized(module):
            for tensor in module.parametrizations:
                state[f"{name}.{tensor}"] = getattr(module, tensor)
    return state


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
    """Channels of each level, finest first: doubling up to a cap.

    Images over 64 pixels start with half of `Shape.width` for every doubling of the side (but at
    least 8), so that a map of 64x64 has the same channels in models of any size, and no level costs
    much more than another. The cap is four times the width, and eight from 64 on: that gives
    AnoGAN's 64-128-256-512, and 512 again where there are more levels.

    >>> widths(Shape(size=64, channels=1, latent_dim=64, width=32), 4)
    [32, 64, 128, 128]
    >>> widths(Shape(size=256, channels=3, latent_dim=64, width=32), 6)
    [8, 16, 32, 64, 128, 128]
    """
    above, side = 0, shape.size
    while side > WIDEST_SIDE:
        above, side = above + 1, (side + 1) // 2
    fewest = min(shape.width, FEWEST_CHANNELS)
    most = shape.width * (8 if shape.width >= 64 else 4)
    return [min(max(shape.width * 2**level // 2**above, fewest), most) for level in range(levels)]


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
            # Weights to be read from a file: torch would load its compiler to draw nothing.
            if module.weight.is_meta:
                continue
            nn.init.kaiming_normal_(module.weight, a=slope)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    return network


def parameter_count(network: nn.Module) -> int:
    """Number of trainable numbers of a network."""
    return sum(p.numel() for p in network.parameters())
