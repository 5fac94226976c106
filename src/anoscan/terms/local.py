"""Mahalanobis distance of local discriminator features, at the few oddest places of the image.

Small defects vanish in any mean over the image. One Gaussian over the features at every place of
every normal image says how usual a place is (Defard et al. 2021, PaDiM, arXiv 2011.08785, with one
Gaussian for all positions, so that images need not be aligned, and the GAN's own discriminator);
the score is the mean over the worst hundredth of the places.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d, interpolate

from anoscan.terms import Evidence, Tensors, Term, fit_gaussian, gaussian_sums, mahalanobis

SHRINKAGE = 0.02
BLOCKS = 3  # the finest ones: coarser blocks see most of the image from anywhere
WORST = 0.01  # share of the places that counts


def places(features: list[Tensor]) -> Tensor:
    """Features of the finest blocks on the grid of the second one, (n, g, g, sum of c_i)."""
    chosen = features[:BLOCKS]
    side = chosen[min(1, len(chosen) - 1)].shape[-1]
    maps = [
        adaptive_avg_pool2d(block, side)
        if block.shape[-1] > side
        else interpolate(block, size=(side, side), mode="bilinear")
        for block in chosen
    ]
    return torch.cat(maps, 1).permute(0, 2, 3, 1)


def sums(evidence: Evidence) -> Tensors:
    """Gaussian sums over all places of all images."""
    return gaussian_sums(places(evidence.features).flatten(0, 2))


def fit(total: Tensors) -> Tensors:
    """Mean and whitening of the features of a place."""
    return fit_gaussian(total, SHRINKAGE)


def measure(evidence: Evidence, fitted: Tensors) -> Tensor:
    """Mean squared whitened coordinate at the worst places, (n,)."""
    vectors = places(evidence.features)
    distances = mahalanobis(vectors.flatten(0, 2), fitted).view(len(vectors), -1)
    worst = max(1, round(WORST * distances.shape[1]))
    return distances.topk(worst).values.mean(1)


ENTRY = Term(sums, fit, measure, paper="Defard et al. 2021", needs_latent=False)
