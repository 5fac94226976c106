"""Mahalanobis distance of the pretrained network's features, over the whole image.

The means of the channels of all maps describe an image, and for all but the coarsest map their
standard deviations too. One Gaussian over these numbers gives the distance (Rippel et al. 2021,
arXiv 2005.14140). It is fitted to the training images and to their mirror images. Signed roots of
the numbers are more like draws from a Gaussian (Perronnin et al. 2010, doi
10.1007/978-3-642-15561-1_11, eq. 6).
"""

from __future__ import annotations

import torch
from torch import Tensor

from anoscan.scoring.terms import Evidence, Tensors, gaussian_sums, gaussian_term

CHANNELS = 1280  # of a map; a wider one is projected on so many random directions


def of_backbone(evidence: Evidence) -> Tensor:
    """Return the pooled features (n, d) of the pretrained network."""
    return pooled(evidence.backbone)


def pooled(maps: list[Tensor]) -> Tensor:
    """Return signed roots of means, and of spreads of all maps (n, c_i, s_i, s_i) but the last.

    They are (n, d), float64.
    """
    flat = [_narrowed(block).flatten(2).double() for block in maps]
    spreads = [(block.var(2, correction=0) + 1e-8).sqrt() for block in flat[:-1]]
    values = torch.cat([block.mean(2) for block in flat] + spreads, 1)
    return values.sign() * values.abs().sqrt()


def sums(evidence: Evidence) -> Tensors:
    """Return the sums of `gaussian_sums` for images and their mirror images."""
    both = [pooled(evidence.backbone), pooled(evidence.mirrored)]
    return gaussian_sums(torch.cat(both))


def _narrowed(block: Tensor) -> Tensor:
    channels = block.shape[1]
    if channels <= CHANNELS:
        return block
    generator = torch.Generator().manual_seed(0)
    directions = torch.randn(channels, CHANNELS, generator=generator) / CHANNELS**0.5
    return torch.einsum("nchw,cd->ndhw", block, directions.to(block))


ENTRY = gaussian_term(
    of_backbone,
    shrinkage=0.02,
    paper="Rippel et al. 2021",
    least_weight=1,  # no patch shows what this term sees in photographs
    needs_latent=False,
    of_backbone=True,
    sums=sums,
)
