"""Mahalanobis distance of the image's discriminator features from those of normal images.

The mean, standard deviation and maximum of every channel of every block describe an image. The
maximum keeps small details, which vanish in a mean. One Gaussian over all these numbers gives the
distance (Lee et al. 2018, arXiv 1807.03888, eq. 2, with the GAN's own discriminator).
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import max_pool2d

from anoscan.scoring.terms import Evidence, gaussian_term


def of_discriminator(evidence: Evidence) -> Tensor:
    """Return the pooled features (n, d) of the discriminator."""
    return pooled(evidence.features)


def pooled(features: list[Tensor]) -> Tensor:
    """Return mean, spread and maximum of each channel of all blocks (n, 3 * sum of c_i), float64.

    A block with a single place, (n, c_i, 1, 1), gives only its c_i values.
    """
    means, spreads, peaks = [], [], []
    for block in features:
        places = block.permute(0, 2, 3, 1).flatten(1, 2)  # channels come last, as in memory
        mean = places.mean(1)
        means.append(mean)
        if places.shape[1] > 1:  # one place is its own mean and maximum
            variance = (places - mean[:, None]).square().mean(1)
            spreads.append((variance + 1e-8).sqrt())
            peaks.append(max_pool2d(block, block.shape[2:]).flatten(1))
    return torch.cat(means + spreads + peaks, 1).double()


# One Gaussian takes what lies between several kinds of images for normal, so `mixture` replaces it.
# Features of a pretrained network say more of an image than those of a discriminator.
ENTRY = gaussian_term(
    of_discriminator,
    shrinkage=0.02,
    paper="Lee et al. 2018",
    unless=("mixture", "backbone_density"),
    needs_latent=False,
)
