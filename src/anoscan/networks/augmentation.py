"""Random changes to batches of images.

A discriminator of few images is shown them augmented, so that it cannot learn them by heart. The
encoder is given images with pasted rectangles, so that it learns to reconstruct without defects.
These two kinds take pixels of other images, so processes that share a batch change all of it.
Random numbers come from a CPU generator, so they are the same on every device.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn.functional import pad

from anoscan.core import shares

# SHIFTED and BLANKED are shares of the side, LIGHTER is a share of the range of values.
SHIFTED, BLANKED, LIGHTER = 1 / 16, 0.3, 0.25


def quarter_turns(x: Tensor) -> Tensor:
    """Return images (n, c, s, s) rotated by 0, 90, 180 and 270 degrees, as (4, n, c, s, s)."""
    return torch.stack([x.rot90(turn, (2, 3)) for turn in range(4)])


def shift(x: Tensor, most: int, generator: torch.Generator) -> Tensor:
    """Move each image (n, c, s, s) by up to `most` pixels along both axes; repeat edge pixels."""
    if most < 1:
        return x
    n, _, height, width = x.shape
    draw = shares.current().drawn
    offsets = draw(lambda n: torch.randint(2 * most + 1, (n, 2), generator=generator), n).to(
        x.device
    )
    rows = offsets[:, :1] + torch.arange(height, device=x.device)
    columns = offsets[:, 1:] + torch.arange(width, device=x.device)
    padded = pad(x, (most,) * 4, mode="replicate").permute(0, 2, 3, 1)
    images = torch.arange(n, device=x.device)[:, None, None]
    return padded[images, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)


def cut_out(x: Tensor, share: float, generator: torch.Generator) -> Tensor:
    """Set to 0 a square of `share` of the side, centred anywhere in each image (n, c, s, s)."""
    n, _, height, width = x.shape
    side = max(1, round(share * height))
    starts = _uniform(n, 2, generator=generator) * torch.tensor([height, width])
    starts = (starts - side / 2).floor().to(x.device)
    down = torch.arange(height, device=x.device) - starts[:, :1]
    across = torch.arange(width, device=x.device) - starts[:, 1:]
    inside_down, inside_across = (down >= 0) & (down < side), (across >= 0) & (across < side)
    hole = inside_down[:, None, :, None] & inside_across[:, None, None, :]
    return x * ~hole


def lighten(x: Tensor, most: float, generator: torch.Generator) -> Tensor:
    """Add a random number to each image (n, c, s, s), of at most `most` times the range 2."""
    amounts = 2 * most * (2 * _uniform(len(x), 1, 1, 1, generator=generator) - 1)
    return x + amounts.to(x.device)


def mirror(x: Tensor, generator: torch.Generator) -> Tensor:
    """Mirror each image (n, c, s, s) left to right with a probability of one half."""
    chosen = (_uniform(len(x), 1, 1, 1, generator=generator) < 0.5).to(x.device)
    return torch.where(chosen, x.flip(3), x)


def _uniform(n: int, *shape: int, generator: torch.Generator) -> Tensor:
    """Draw numbers (n, *shape) in [0, 1) for the n images that this process has of a batch."""
    return shares.current().drawn(lambda whole: torch.rand(whole, *shape, generator=generator), n)


# The keys are those of `core.config.AUGMENTATIONS`. All changes can be differentiated.
VIEWS: dict[str, Callable[[Tensor, torch.Generator], Tensor]] = {
    "shift": lambda x, generator: shift(x, int(x.shape[-1] * SHIFTED), generator),
    "cutout": lambda x, generator: cut_out(x, BLANKED, generator),
    "brightness": lambda x, generator: lighten(x, LIGHTER, generator),
    "flip": mirror,
}


def discriminator_view(x: Tensor, names: Sequence[str], generator: torch.Generator) -> Tensor:
    """Apply the named changes of `VIEWS` to images (n, c, s, s), one after the other.

    A discriminator that is shown real and generated images so changed does not learn few images by
    heart (Zhao et al. 2020, arXiv 2006.10738). The changes can be differentiated, so the generator
    does not learn them.
    """
    for name in names:
        x = VIEWS[name](x, generator)
    return x


def cut_paste(x: Tensor, generator: torch.Generator, *, share: float = 0.5) -> Tensor:
    """Return a copy of images (n, c, s, s) in which a share has a rectangle of another image.

    `share` is the probability that an image gets one. Its sides are an eighth to three eighths of
    the image's. It comes from a random place in the next image of the batch. In CutPaste it comes
    from the same image (Li et al. 2021, arXiv 2104.04015).
    """
    n, _, height, width = x.shape
    draws = torch.rand(n, 7, generator=generator)
    given = x.clone()
    for i, draw in enumerate(draws.tolist()):
        if draw[0] < 1 - share:
            continue
        h = max(1, round(height * (0.125 + 0.25 * draw[1])))
        w = max(1, round(width * (0.125 + 0.25 * draw[2])))
        top, left = int(draw[3] * (height - h + 1)), int(draw[4] * (width - w + 1))
        from_top, from_left = int(draw[5] * (height - h + 1)), int(draw[6] * (width - w + 1))
        donor = x[(i + 1) % n]
        given[i, :, top : top + h, left : left + w] = donor[
            :, from_top : from_top + h, from_left : from_left + w
        ]
    return given


def with_defects(x: Tensor, generator: torch.Generator) -> Tensor:
    """Return a copy of images (n, c, s, s) in which most have one or two synthetic defects.

    A defect is a rectangle of another image, a line, or a disc that is filled, noisy, brighter or
    darker. Its size is 5 to 40 % of the side, and small ones are more frequent.
    """
    return _with_a_defect(_with_a_defect(x, 0.8, generator), 0.4, generator)


def _with_a_defect(x: Tensor, share: float, generator: torch.Generator) -> Tensor:
    """Put a defect of a random kind into each of a share of images (n, c, s, s)."""
    n, channels, side, _ = x.shape
    draws = torch.rand(n, 11 + channels, 1, 1, generator=generator).to(x.device)
    chosen, kind, scale, row, column, a, b, angle, strength, sign, shade = draws[:, :11].unbind(1)
    noise = torch.randn(x.shape, generator=generator).to(x.device)
    places = torch.arange(side, device=x.device)
    size = side * (0.05 + 0.35 * scale**1.5)
    down, across = places[:, None] - row * side, places - column * side
    rectangle = (down.abs() <= size * (1 + a) / 4) & (across.abs() <= size * (1 + b) / 4)
    along = down * (angle * math.pi).sin() + across * (angle * math.pi).cos()
    beside = down * (angle * math.pi).cos() - across * (angle * math.pi).sin()
    width = (size * b / 4).clamp_min(1)
    line = (width / 2 + 0.5 - beside.abs()).clamp(0, 1) * (along.abs() <= size * 0.75)
    disc = (size / 2 + 0.5 - torch.hypot(down, across)).clamp(0, 1)
    which = (kind * 5).long()
    cover = torch.where(which == 0, rectangle.float(), torch.where(which == 1, line, disc))
    contrast = x.std()
    change = (contrast * (1 + strength) * torch.where(sign < 0.5, -1.0, 1.0))[:, None]
    if channels > 1:
        change = change * (0.5 + 0.5 * draws[:, 11:])
    images = (torch.arange(n, device=x.device) + 1)[:, None, None] % n
    from_row = (places[:, None] + (shade * side).long()) % side
    from_column = (places + (strength * side).long()) % side
    donor = x.permute(0, 2, 3, 1)[images, from_row, from_column].permute(0, 3, 1, 2)
    filled = (x.mean((2, 3), keepdim=True) + 1.5 * change).expand_as(x)
    fills = (donor, x + change, filled, x + contrast * noise, x + 0.7 * change)
    drawn = torch.stack(fills)[which[:, 0, 0], torch.arange(n, device=x.device)].clamp(-1, 1)
    return torch.lerp(x, drawn, cover[:, None] * (chosen[:, None] < share))
