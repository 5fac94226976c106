"""What a folder of training images is made of: copies, blank images, sizes, bit depths."""

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
    images : int
        Readable ones.
    copies : int
        Of them, those whose bytes another one has too, without the first of each.
    views : int
        What was looked at for blanks: the images, or patches of them.
    blank : int
        Views that are one grey or colour all over.
    sizes : dict from 'WIDTHxHEIGHT' to a count
    bit_depths : dict from a kind such as '8-bit grey' to a count
        Both of the images that were inspected.
    patched : bool
        Whether the networks see parts at the images' own scale, not whole images made square.
    """

    images: int
    copies: int
    views: int
    blank: int
    sizes: dict[str, int]
    bit_depths: dict[str, int]
    patched: bool


def take(digests: Sequence[bytes], blank: Iterable[bool], inspection: Inspection) -> Census:
    """Census from the digest of each image and `is_blank` of each view."""
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
    """Whether an image (c, h, w) in [-1, 1] has nothing in it, noise of one grey level aside."""
    return bool((pixels.max((1, 2)) - pixels.min((1, 2))).max() < BLANK)


def odd_sizes(census: Census) -> float:
    """Share of the images whose shape or scale is unlike that of most.

    Shape: the ratio of the sides differs by more than a quarter from the usual one; scale: the
    longer side is under half or over twice the usual one.
    """
    sides = np.array([name.split("x") for name in census.sizes], dtype=float)
    counts = np.array(list(census.sizes.values()))
    every = np.repeat(np.log(sides), counts, axis=0)
    shape, scale = every[:, 0] - every[:, 1], every.max(1)
    odd = np.abs(shape - np.median(shape)) > np.log(1.25)
    odd |= np.abs(scale - np.median(scale)) > np.log(2.001)
    return float(odd.mean())


def odd_depths(census: Census) -> dict[str, int]:
    """Kinds of image that do not belong together; empty where all do.

    Other depths never do: black and white are set from all. Grey images among coloured ones do
    when they are few (things can be grey), coloured ones among grey ones never: a single one
    makes the model see colours.
    """
    kinds, total = census.bit_depths, sum(census.bit_depths.values())
    coloured = sum(count for kind, count in kinds.items() if kind.endswith("colour"))
    depths = {kind.split()[0] for kind in kinds}
    few_grey = coloured >= 0.9 * total
    return {} if len(depths) == 1 and (not coloured or few_grey) else dict(kinds)
