"""The mean image and PCA: what a detector must beat, stored in every model.

Both are fitted on the same training images as the networks, so that ``anoscan eval`` can print
them without those images, and says so when the networks did not earn their keep.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

COMPONENTS = 64
MOST_NUMBERS = 40_000_000  # of the matrix that PCA works on: 160 MB
NAMES = ("mean_image", "pca")


@dataclass(frozen=True)
class Baselines:
    """Mean of the training images (p,), and orthonormal principal components (k, p), float32."""

    mean: np.ndarray
    components: np.ndarray

    @classmethod
    def fit(cls, pixels: np.ndarray, rows: np.ndarray, seed: int) -> Baselines:
        """Fit on rows of `pixels` (n, c, s, s); on a seeded subset where all would not fit."""
        from sklearn.decomposition import PCA

        p = int(np.prod(pixels.shape[1:]))
        most = max(2 * COMPONENTS, MOST_NUMBERS // p)
        if len(rows) > most:
            rows = np.sort(np.random.default_rng(seed).choice(rows, most, replace=False))
        flat = np.asarray(pixels[rows], dtype=np.float32).reshape(len(rows), p)
        k = min(COMPONENTS, len(rows) - 1, p)
        pca = PCA(k, svd_solver="randomized", random_state=seed).fit(flat)
        return cls(pca.mean_.astype(np.float32), pca.components_.astype(np.float32))

    def scores(self, pixels: ArrayLike) -> dict[str, np.ndarray]:
        """Scores (n,) of images (n, c, s, s) by each baseline; higher is more anomalous.

        ``mean_image`` is the mean squared difference from the mean image, ``pca`` the mean
        squared residual outside the principal components.
        """
        x = np.asarray(pixels, dtype=np.float64)
        centred = x.reshape(len(x), -1) - self.mean
        total = np.square(centred).mean(1)
        inside = np.square(centred @ self.components.T.astype(np.float64)).sum(1)
        return {"mean_image": total, "pca": np.maximum(total - inside / centred.shape[1], 0)}
