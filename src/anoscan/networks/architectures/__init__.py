"""Network architectures: each file holds one, and all keep the same contract.

- ``generator(z)`` maps latents (n, d), float32 from N(0, I), to images (n, c, s, s) in [-1, 1].
- ``discriminator(x)`` maps images to one unbounded number each, (n,); higher is more real. A critic
  (WGAN) is the same network under another objective.
- ``discriminator.features(x)`` are the outputs (n, c_i, s_i, s_i) of its blocks, from fine to
  coarse. Vectors have s_i = 1. The last one is the ``f(x)`` of the f-AnoGAN paper.
- ``discriminator.rotation(features)`` gives logits (n, 4) of the number of quarter rotations by
  which an image was rotated.
- ``encoder(x)`` maps images to latents (n, d), unbounded.

Discriminators have no BatchNorm and no Dropout. Both make the output of one image depend on the
others of its batch, which a per-image gradient penalty does not survive. Features and rotation
logits never depend on them. In evaluation neither does realness, since scores must not.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from anoscan.core import shares
from anoscan.networks.backbone import Backbone

WIDEST_SIDE = 64  # feature maps larger than this have fewer channels than `Shape.width`
FEWEST_CHANNELS = 8
SMALL_SIDE = 2  # up to this side `DoublingConv` enlarges maps before it convolves them


@dataclass(frozen=True)
class Shape:
    """What the networks of a model have in common.

    Square images have sides of `size` pixels, and 1 (grey) or 3 (RGB) `channels`. `latent_dim` is
    the length of a latent. The finest feature maps have `width` channels, unless images are large;
    see `widths`.
    """

    size: int
    channels: int
    latent_dim: int
    width: int


class Discriminator(nn.Module):
    """A stack of blocks with two linear heads on the last one: for realness and for rotation.

    The outputs of the blocks are the features. The last one has `flat` values for each image.
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
        """Logits (n, 4) of 0 to 3 quarter rotations, from `features`."""
        logits: Tensor = self.turn_head(flat(features[-1]))
        return logits.float()

    def forward(self, x: Tensor) -> Tensor:
        """Realness (n,) of images (n, c, s, s); higher is more real."""
        return self.realness(self.features(x))

    def compare(self, real: Tensor, fake: Tensor) -> tuple[Tensor, Tensor]:
        """Realness (n,) of real and of generated images, (n, c, s, s) each, in one pass."""
        # Both take one pass, since small batches waste a processor.
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
    """The networks of one model; after the GAN stage `generator` is its moving average.

    `decoder` is a copy of the generator that was tuned to make reconstructions, and `correction`
    adds what the decoder misses. Without them the generator alone makes reconstructions, as in the
    papers. `backbone` is a pretrained network that never learns here.
    """

    generator: nn.Module
    discriminator: Discriminator
    encoder: nn.Module
    decoder: nn.Module | None = None
    correction: nn.Module | None = None
    backbone: Backbone | None = None

    def parts(self) -> dict[str, nn.Module]:
        """Return the networks by their names."""
        found = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return {name: network for name, network in found.items() if network is not None}

    @property
    def mirror(self) -> tuple[nn.Module, nn.Module]:
        """Encoder and the network that makes reconstructions of its latents."""
        return self.encoder, self.generator if self.decoder is None else self.decoder

    def reconstruct(self, x: Tensor, z: Tensor | None = None) -> Tensor:
        """Return reconstructions (n, c, s, s) of images, by their latents (n, d) or those of E."""
        encoder, decoder = self.mirror
        x_hat: Tensor = decoder(encoder(x) if z is None else z)
        return x_hat if self.correction is None else self.correction(x, x_hat)

    def to(self, device: torch.device) -> Networks:
        """Move all networks to a device, in channels-last layout, and return self."""
        for network in self.parts().values():
            network.to(device=device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        return self

    def frozen(self, device: torch.device | None = None) -> Networks:
        """Set all networks to evaluation mode, freeze their weights, and return self.

        They are moved to `device`, where given. All get channels-last layout, so that a trained and
        a loaded model compute the same to the last bit.
        """
        for network in self.parts().values():
            network.eval().requires_grad_(False)
            network.to(device=device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        return self


SLOPE = 0.2  # of the LeakyReLU in discriminators and encoders
# From a shape to the blocks of a discriminator, and how many features the last one has.
Blocks = Callable[[Shape], tuple[list[nn.Module], int]]


def discriminator_of(make: Blocks, shape: Shape) -> Discriminator:
    """Build a discriminator of blocks with LeakyReLU."""
    network = Discriminator(*make(shape))
    initialise(network, slope=SLOPE)
    return network


def encoder_of(make: Blocks, shape: Shape) -> nn.Module:
    """Build an encoder: the blocks of a discriminator, and a linear layer to the latent."""
    blocks, features = make(shape)
    trunk = nn.Sequential(*blocks, Flatten(), nn.Linear(features, shape.latent_dim))
    return initialise(trunk, slope=SLOPE)


def build(architecture: Architecture, shape: Shape) -> Networks:
    """Build networks with fresh weights, drawn from torch's global generator."""
    return Networks(
        architecture.generator(shape),
        architecture.discriminator(shape),
        architecture.encoder(shape),
    )


class Growing:
    """A generator or discriminator that starts the GAN stage at low resolution and grows.

    Its inputs and outputs have full size at all times. A generator enlarges what it made, and a
    discriminator first shrinks what it is given. `GanStage` calls `grow` before each step with the
    share of the stage that is over, so growth needs no state. Before the first call a network has
    full size. Such networks also train at equalised learning rates (`equalise`).

    Attributes
    ----------
    sides : list of int
        Sides of the feature maps, finest first; see `pyramid`.
    level : int
        Index in `sides` of the resolution reached; 0 is full size.
    alpha : float
        How much of that level has faded in, 0 to 1.
    """

    sides: list[int]
    level: int = 0
    alpha: float = 1.0

    def grow(self, share: float) -> None:
        """Set the resolution that belongs to a share of the GAN stage, 0 to 1."""
        self.level, self.alpha = growth(share, len(self.sides) - 2)

    def faded(self, images: Tensor) -> Tensor:
        """Remove from real images (n, c, s, s) the detail that has not faded in; sizes stay.

        Karras et al. 2018, section 2: real images fade between resolutions as generated ones do.
        """
        if self.alpha == 1:
            return images
        fine = self.shrunk(images, self.level)
        coarse = enlarged(halved(fine), self.sides[self.level])
        return self.enlarged(blend(coarse, fine, self.alpha))

    def shrunk(self, images: Tensor, level: int) -> Tensor:
        """Shrink images of full size to the side of a level."""
        for _ in range(level):
            images = halved(images)
        return images

    def enlarged(self, images: Tensor) -> Tensor:
        """Enlarge images of the current level to full size; `shrunk` undoes it exactly."""
        for side in reversed(self.sides[: self.level]):
            images = enlarged(images, side)
        return images


GROWN = 0.5  # share of the GAN stage after which a growing network has full size


def growth(share: float, levels: int) -> tuple[int, float]:
    """Level and alpha after a share of the GAN stage, for networks of `levels` halvings.

    Every level but the finest takes an equal part of the time. In the first half of its part it
    stays as it is, and in the second half the next level fades in.

    >>> growth(0.0, 2), growth(0.1875, 2), growth(0.25, 2), growth(0.5, 2)
    ((2, 1.0), (1, 0.5), (1, 1.0), (0, 1.0))
    """
    if share >= GROWN or not levels:
        return 0, 1.0
    passed, part = divmod(share / GROWN * levels, 1)
    level = levels - int(passed)
    return (level, 1.0) if part < 0.5 else (level - 1, 2 * part - 1)


def blend(a: Tensor, b: Tensor, share: float) -> Tensor:
    """Blend two tensors: a share of 0 gives `a`, a share of 1 gives `b`.

    Unlike torch.lerp this accepts two precisions, which autocast may give.
    """
    return a * (1 - share) + b * share


def halved(x: Tensor) -> Tensor:
    """Halve the sides by means of 2x2 pixels; odd sides repeat their last row or column first."""
    return nn.functional.avg_pool2d(EvenPad()(x), 2)


def enlarged(x: Tensor, side: int) -> Tensor:
    """Double the sides by repeating pixels, and cut them to `side`."""
    return nn.functional.interpolate(x, scale_factor=2)[..., :side, :side]


def spread(x: Tensor) -> Tensor:
    """Standard deviation over the batch, averaged over all other axes, scalar float32.

    It is the statistic of Karras et al. 2018 (arXiv 1710.10196), section 3.
    """
    share = shares.current()
    if share.size == 1:
        return (x.float().var(0, correction=0) + 1e-8).sqrt().mean()
    return (share.moments(x.float(), (0,))[1] + 1e-8).sqrt().mean()


REFERENCE_INPUTS = 512


class _Scaled(nn.Module):
    """Makes a weight from the parameter that is trained, times a constant."""

    def __init__(self, scale: float) -> None:
        super().__init__()
        self.scale = scale

    def forward(self, parameter: Tensor) -> Tensor:
        return parameter * self.scale

    def right_inverse(self, weight: Tensor) -> Tensor:
        return weight / self.scale


def equalise(network: nn.Module) -> nn.Module:
    """Give every layer the same relative learning speed; weights stay as they are.

    In Karras et al. 2018 (arXiv 1710.10196), section 4.1, Adam moves the weight divided by He's
    constant. So its steps are the same share of every weight. Here the constant is relative to a
    layer of 512 inputs, so that a learning rate means the same without equalisation. `network`
    itself is reparametrised and returned; `plain_state` gives its weights as if it were not.
    """
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            scale = (REFERENCE_INPUTS / module.weight[0].numel()) ** 0.5
            parametrize.register_parametrization(module, "weight", _Scaled(scale))
    return network


def plain_state(network: nn.Module) -> dict[str, Tensor]:
    """State of a network with the weights that act, named as without parametrisations."""
    marker = "parametrizations."
    state = {k: v for k, v in network.state_dict().items() if marker not in k}
    for name, module in network.named_modules():
        if parametrize.is_parametrized(module):
            for tensor in module.parametrizations:
                state[f"{name}.{tensor}"] = getattr(module, tensor)
    return state


def pyramid(size: int, *, smallest: int = 2) -> list[int]:
    """Sides of the feature maps of an image halved until `smallest` or less, finest first.

    Odd sides are rounded up, so that any image size works.

    >>> pyramid(28)
    [28, 14, 7, 4, 2]
    """
    sides = [size]
    while sides[-1] > smallest:
        sides.append((sides[-1] + 1) // 2)
    return sides


def widths(shape: Shape, levels: int) -> list[int]:
    """Channels of each level, finest first; they double up to a cap.

    The first level has `Shape.width` channels. In images over 64 pixels it has half as many for
    every doubling of the side, but at least 8 (or the width where that is less). So a map of 64x64
    has the same channels in models of any size, and no level costs much more than another. The cap
    is four times the width, or eight times for a width of at least 64. That gives AnoGAN's
    64-128-256-512, and 512 again where there are more levels.

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
    """Flatten maps (n, c, h, w) to vectors (n, h * w * c), channels last.

    In that order the gradient comes back channels-last too. Otherwise every convolution before it
    would be computed in the slow layout.
    """
    return x.permute(0, 2, 3, 1).flatten(1)


class Flatten(nn.Module):
    """Applies `flat` as a layer."""

    def forward(self, x: Tensor) -> Tensor:
        """Map (n, c, h, w) to (n, h * w * c)."""
        return flat(x)


class EvenPad(nn.Module):
    """Repeats the last row or column of odd-sided maps, so that halving rounds up."""

    def forward(self, x: Tensor) -> Tensor:
        """Map (n, c, h, w) to a map of even sides, one larger where they were odd."""
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


class DoublingConv(nn.Conv2d):
    """Doubles the sides of maps by repeating pixels, and convolves them with 3x3 kernels.

    Both are computed as one transposed convolution, with 4x4 kernels that are sums of the 3x3
    weights. The values are the same, for 4 in 9 of the products. As the 4x4 kernels are not free,
    they draw no checkerboards.
    """

    def __init__(self, before: int, after: int, *, bias: bool = False) -> None:
        super().__init__(before, after, 3, padding=1, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        """Map (n, before, h, w) to (n, after, 2h, 2w)."""
        if x.shape[2] <= SMALL_SIDE:  # summing the weights would take longer than it saves
            return super().forward(nn.functional.interpolate(x, scale_factor=2))
        sums = self.weight.reshape(-1, 9) @ _SUMS.to(self.weight)
        kernels = sums.view(self.out_channels, self.in_channels, 4, 4).transpose(0, 1)
        if self.out_channels >= FEWEST_CHANNELS:
            return nn.functional.conv_transpose2d(x, kernels, self.bias, stride=2, padding=1)
        # Convolutions to one or three channels are slow, so these are products of matrices.
        sides = (2 * x.shape[2], 2 * x.shape[3])
        columns = nn.functional.conv2d(x, kernels.flatten(1).t()[:, :, None, None])
        columns = columns.float().contiguous().flatten(2)
        image = nn.functional.fold(columns, sides, 4, padding=1, stride=2)
        return image if self.bias is None else image + self.bias[:, None, None]


def _sums() -> Tensor:
    """Return which of 3x3 weights (rows) add up to each of 4x4 weights of `DoublingConv`."""
    one = torch.tensor([[0.0, 0.0, 1.0, 1.0], [0.0, 1.0, 1.0, 0.0], [1.0, 1.0, 0.0, 0.0]])
    return torch.einsum("ac,bd->abcd", one, one).reshape(9, 16)


_SUMS = _sums()


class Unflatten(nn.Module):
    """Reshapes vectors (n, side * side * c) to channels-last maps (n, c, side, side)."""

    def __init__(self, channels: int, side: int) -> None:
        super().__init__()
        self.channels, self.side = channels, side

    def forward(self, x: Tensor) -> Tensor:
        """Map (n, side * side * c) to (n, c, side, side)."""
        return x.view(x.shape[0], self.side, self.side, self.channels).permute(0, 3, 1, 2)


def initialise(network: nn.Module, *, slope: float = 0.0) -> nn.Module:
    """Initialise every convolution and linear layer by He, with zero biases; return `network`.

    `slope` is that of the LeakyReLU activations; it is 0 for ReLU.
    """
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.ConvTranspose2d | nn.Linear):
            # These weights will be read from a file. Torch would load its compiler to draw nothing.
            if module.weight.is_meta:
                continue
            nn.init.kaiming_normal_(module.weight, a=slope)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    return network


def parameter_count(network: nn.Module) -> int:
    """Number of values in all parameters of a network."""
    return sum(p.numel() for p in network.parameters())
