"""Distance to the nearest of many prototypes of normal images.

One Gaussian calls usual whatever lies between kinds of normal images, and one subspace whatever
mixes them. Prototypes do not: in the largest principal components of coarse pixels, k-means puts
one at every few normal images, and an image is as odd as it is far from the nearest (the k-means
description of Tax 2001, "One-class classification").

A model keeps no image for this: each prototype is the mean of at least three. That also keeps
one or two strangers among the normal images from vouching for others like them.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d

from anoscan.scoring.terms import ROWS, Evidence, Tensors, Term

SIDE = 16  # pixels: larger images are averaged down to it
COMPONENTS = 32
IMAGES_A_COMPONENT = 4  # of fewer images, more components would know them by heart
IMAGES_A_PROTOTYPE = 8
LEAST_IMAGES = 3  # of a prototype, where there is any of so many
MOST_IMAGES = 16_384  # that prototypes are made of; of more, evenly chosen ones
ROUNDS = 30  # of k-means
FLOOR = 0.01  # of the variance: a copy of a prototype must not be infinitely usual


def sums(evidence: Evidence) -> Tensors:
    """Coarse pixels (n, p) of the images, to be joined and not added."""
    return {ROWS: _coarse(evidence.x).half()}


def fit(total: Tensors) -> Tensors:
    """Mean (p,), principal components (p, k), prototypes (m, k) and the variance in them."""
    from sklearn.cluster import KMeans
    from sklearn.decomposition import PCA

    rows = total[ROWS].cpu().double().numpy()
    rows = rows[:: -(-len(rows) // MOST_IMAGES)]
    k = max(1, min(COMPONENTS, len(rows) // IMAGES_A_COMPONENT, rows.shape[1]))
    with np.errstate(invalid="ignore"):  # shares of variance, of images that are all the same
        pca = PCA(k, svd_solver="randomized", random_state=0).fit(rows)
    inside = pca.transform(rows)
    many = max(1, min(len(rows) // IMAGES_A_PROTOTYPE, len(np.unique(inside, axis=0))))
    found = KMeans(many, n_init=1, max_iter=ROUNDS, random_state=0).fit(inside)
    sizes = np.bincount(found.labels_, minlength=many)
    kept = found.cluster_centers_[sizes >= min(LEAST_IMAGES, sizes.max())]
    numbers = {
        "mean": pca.mean_,
        "basis": pca.components_.T,
        "prototypes": kept,
        "variance": inside.var(0).sum(),
    }
    device = total[ROWS].device
    return {name: torch.tensor(value).float().to(device) for name, value in numbers.items()}


def measure(evidence: Evidence, fitted: Tensors) -> Tensor:
    """Squared distance to the nearest prototype, relative to the variance of normals, (n,)."""
    centred = _coarse(evidence.x).double() - fitted["mean"].double()
    basis, prototypes = fitted["basis"].double(), fitted["prototypes"].double()
    # One image at a time: no image's figures may depend on how many are measured with it.
    nearest = [(prototypes - row @ basis).square().sum(1).min() for row in centred]
    variance = fitted["variance"].double()
    relative: Tensor = torch.stack(nearest) / (variance + 1e-12) + FLOOR
    return relative


def _coarse(x: Tensor) -> Tensor:
    """Images (n, c, s, s) as vectors (n, p) of at most `SIDE` by `SIDE` pixels."""
    return (adaptive_avg_pool2d(x, SIDE) if x.shape[-1] > SIDE else x).flatten(1)


ENTRY = Term(measure, paper="Tax 2001", sums=sums, fit=fit, needs_latent=False, of_patches=False)
