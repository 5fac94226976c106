"""Mahalanobis distance of the image's discriminator features from those of normal images.

The mean, standard deviation and maximum of every channel of every block describe an image. The
maximum keeps small details, which vanish in a mean. One Gaussian over all these numbers gives the
distance (Lee et al. 2018, arXiv 1807.03888, eq. 2, with the GAN's own discriminator).
"""

from __future__ import annotations

import torch
from torch import Tensor

from anoscan.scoring.terms import Evidence, gaussian_term


def of_discriminator(evidence: Evidence) -> Tensor:
    """Return the pooled features (n, d) of the discriminator."""
    return pooled(evidence.features)


def pooled(features: list[Tensor]) -> Tensor:
    """Return mean, spread and maximum of each channel of all blocks (n, 3 * sum of c_i), float64.

    A block with a single place, (n, c_i, 1, 1), gives only its c_i values.
    """
    flat = [block.flatten(2).double() for block in features]
    means = [block.mean(2) for block in flat]
    flat = [block for block in flat if block.shape[2] > 1]  # one place is its own mean and maximum
    spreads = [(block.var(2, correction=0) + 1e-8).sqrt() for block in flat]
    peaks = [block.amax(2) for block in flat]
    return torch.cat(means + spreads + peaks, 1)


ENTRY = gaussian_term(of_discriminator, shrinkage=0.02, paper="Lee et al. 2018", needs_latent=False)
