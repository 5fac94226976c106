"""Distance to the nearest of many prototypes of normal images.

Normal images may be of several kinds. One Gaussian takes all that lies between the kinds for
normal, and one subspace all that mixes them; prototypes do not. K-means finds one prototype to
every few normal images, in the largest principal components of coarse pixels (Tax 2001, "One-class
classification").

Each prototype is the mean of at least three images where there is any such. So a model stores no
single image, and one or two anomalies among the training images do not become a prototype.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d

from anoscan.core.tensors import Like
from anoscan.core.tracing import recording
from anoscan.scoring.terms import ROWS, Evidence, Forms, Tensors, Term

SIDE = 16  # pixels a side; larger images are averaged down to it
COMPONENTS = 32
IMAGES_A_COMPONENT = 4  # with fewer images a component, PCA would learn the images by heart
IMAGES_A_PROTOTYPE = 8
LEAST_IMAGES = 3  # a prototype of fewer is dropped, unless all have fewer
MOST_IMAGES = 16_384  # images that prototypes are made of, at most, evenly chosen
ROUNDS = 30  # of k-means
FLOOR = 0.01  # of the variance; keeps the logarithm finite for a copy of a prototype


def sums(evidence: Evidence) -> Tensors:
    """Return the coarse pixels (n, p), float16, of the images; batches of them are joined."""
    return {ROWS: _coarse(evidence.x).half()}


def fit(total: Tensors) -> Tensors:
    """Fit principal components and prototypes to the joined coarse pixels.

    Returns
    -------
    dict of float32 tensors
        ``mean`` (p,) of the coarse pixels, principal components ``basis`` (p, k), ``prototypes``
        (m, k), and ``variance`` (), the sum of the variances of the components.
    """
    from sklearn.cluster import KMeans
    from sklearn.decomposition import PCA

    rows = total[ROWS].cpu().double().numpy()
    rows = rows[:: -(-len(rows) // MOST_IMAGES)]
    k = max(1, min(COMPONENTS, len(rows) // IMAGES_A_COMPONENT, rows.shape[1]))
    with np.errstate(invalid="ignore"):  # equal images have no variance to take shares of
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


def forms(evidence: Evidence) -> Forms:
    """Return what the fitted tensors are like."""
    p = _coarse(evidence.x).shape[1]
    return {
        "mean": Like((p,)),
        "basis": Like((p, "components of prototypes")),
        "prototypes": Like(("prototypes", "components of prototypes")),
        "variance": Like((), low=0),
    }


def measure(evidence: Evidence, fitted: Tensors) -> Tensor:
    """Return the squared distance to the nearest prototype, relative to the variance, (n,)."""
    centred = _coarse(evidence.x).double() - fitted["mean"].double()
    inside = centred @ fitted["basis"].double()
    prototypes = fitted["prototypes"].double()
    # Differences are exact where a product of matrices would lose digits.
    if recording():
        nearest = (inside[:, None] - prototypes).square().sum(2).sqrt()
    else:
        nearest = torch.cdist(inside, prototypes, compute_mode="donot_use_mm_for_euclid_dist")
    variance = fitted["variance"].double()
    relative: Tensor = nearest.amin(1).square() / (variance + 1e-12) + FLOOR
    return relative


def _coarse(x: Tensor) -> Tensor:
    """Return images (n, c, s, s) as vectors (n, p) of at most `SIDE` by `SIDE` pixels."""
    return (adaptive_avg_pool2d(x, SIDE) if x.shape[-1] > SIDE else x).flatten(1)


ENTRY = Term(
    measure,
    paper="Tax 2001",
    sums=sums,
    fit=fit,
    forms=forms,
    needs_latent=False,
    of_patches=False,
)
