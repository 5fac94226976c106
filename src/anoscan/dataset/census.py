"""Counts what a folder of training images holds: copies, blank images, sizes, bit depths."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from anoscan.core.arrays import Floats
from anoscan.dataset.inspection import Inspection
from anoscan.images.canvas import BLANK


@dataclass(frozen=True)
class Census:
    """Counts of what a folder holds.

    Parameters
    ----------
    images, copies : int
        Numbers of readable images, and of those with the content of an earlier one.
    views, blank : int
        Numbers of images, or of patches of them, that were checked for being of one grey or colour
        all over, and of those that are.
    sizes, bit_depths : dict of str to int
        Numbers of inspected images by 'WIDTHxHEIGHT', and by kind, such as '8-bit grey'.
    patched : bool
        Whether the networks see patches of the images, not whole images made square.
    """

    images: int
    copies: int
    views: int
    blank: int
    sizes: dict[str, int]
    bit_depths: dict[str, int]
    patched: bool


def take(digests: Sequence[bytes], blank: Iterable[bool], inspection: Inspection) -> Census:
    """Return the census from the digest of each image and `is_blank` of each view."""
    blanks = list(blank)
    return Census(
        images=len(digests),
        copies=len(digests) - len(set(digests)),
        views=len(blanks),
        blank=sum(blanks),
        sizes=inspection.sizes,
        bit_depths=inspection.bit_depths,
        patched=inspection.rule.patch is not None,
    )


def is_blank(pixels: Floats) -> bool:
    """Whether an image (c, h, w) in [-1, 1] is of one grey or colour all over.

    Noise of one grey level of 256 does not count.
    """
    return bool((pixels.max((1, 2)) - pixels.min((1, 2))).max() < BLANK)


def odd_sizes(census: Census) -> float:
    """Share of the images whose shape or scale differs from that of most.

    The shape differs where the ratio of the sides is more than a quarter away from the median. The
    scale differs where the longer side is under half or over twice the median.
    """
    sides = np.array([name.split("x") for name in census.sizes], dtype=float)
    counts = np.array(list(census.sizes.values()))
    every = np.repeat(np.log(sides), counts, axis=0)
    shape, scale = every[:, 0] - every[:, 1], every.max(1)
    odd = np.abs(shape - np.median(shape)) > np.log(1.25)
    odd |= np.abs(scale - np.median(scale)) > np.log(2.001)
    return float(odd.mean())


def odd_depths(census: Census) -> dict[str, int]:
    """Return all kinds of images with their counts where they do not go together, else {}.

    Different depths never go together, since black and white are set from all images. At most a
    tenth of grey images go together with coloured ones, since things can be grey. With more grey
    ones they do not: a single coloured image makes the model see colours.
    """
    kinds, total = census.bit_depths, sum(census.bit_depths.values())
    coloured = sum(count for kind, count in kinds.items() if kind.endswith("colour"))
    depths = {kind.split()[0] for kind in kinds}
    few_grey = coloured >= 0.9 * total
    return {} if len(depths) == 1 and (not coloured or few_grey) else dict(kinds)
