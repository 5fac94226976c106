"""Mahalanobis distance of the latent E(x) from those of normal images.

An image whose latent is far from the latents of normal images is anomalous even where the generator
can reconstruct it. The distance is that of Lee et al. 2018 (arXiv 1807.03888), eq. 2, on latents.
"""

from __future__ import annotations

from torch import Tensor

from anoscan.scoring.terms import Evidence, gaussian_term


def latents(evidence: Evidence) -> Tensor:
    """Return the latents (n, d) of the images."""
    return evidence.z


ENTRY = gaussian_term(latents, shrinkage=0.01, paper="Lee et al. 2018")
