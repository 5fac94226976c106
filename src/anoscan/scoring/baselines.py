"""Simple baselines that a detector must beat: the mean image and PCA. Every model stores them.

Both are fitted on the same training images as the networks. So ``anoscan eval`` needs no training
images to compare, and warns where the networks are not better.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import ArrayLike

COMPONENTS = 64
MOST_NUMBERS = 40_000_000  # in the matrix that PCA works on: 160 MB of float32
NAMES = ("mean_image", "pca")


@dataclass(frozen=True)
class Baselines:
    """The mean of the training images, and their orthonormal principal components.

    Parameters
    ----------
    mean : ndarray of shape (p,), float32
    components : ndarray of shape (k, p), float32
    """

    mean: np.ndarray
    components: np.ndarray

    @classmethod
    def fit(cls, pixels: np.ndarray, rows: np.ndarray, seed: int) -> Baselines:
        """Fit to rows of `pixels` (n, c, s, s), or to a seeded subset where these are too many."""
        from sklearn.decomposition import PCA

        p = int(np.prod(pixels.shape[1:]))
        most = max(2 * COMPONENTS, MOST_NUMBERS // p)
        if len(rows) > most:
            rows = np.sort(np.random.default_rng(seed).choice(rows, most, replace=False))
        flat = np.asarray(pixels[rows], dtype=np.float32).reshape(len(rows), p)
        k = min(COMPONENTS, len(rows) - 1, p)
        with np.errstate(invalid="ignore"):  # equal images have no variance to take shares of
            pca = PCA(k, svd_solver="randomized", random_state=seed).fit(flat)
        # In C order, as a model is loaded: the order of sums, and so the last digits, depend on it.
        components = np.ascontiguousarray(pca.components_, dtype=np.float32)
        return cls(pca.mean_.astype(np.float32), components)

    def tensors(self, device: torch.device) -> dict[str, torch.Tensor]:
        """Return `mean` and `components` as tensors on a device."""
        arrays = {"mean": self.mean, "components": self.components}
        return {name: torch.from_numpy(array).to(device) for name, array in arrays.items()}

    def scores(self, pixels: ArrayLike) -> dict[str, np.ndarray]:
        """Return the scores (n,) of images (n, c, s, s) by each baseline; higher is more anomalous.

        ``mean_image`` is the mean squared difference from the mean image. ``pca`` is the mean
        squared residual from the principal components.
        """
        x = np.asarray(pixels, dtype=np.float64)
        centred = x.reshape(len(x), -1) - self.mean
        total = np.square(centred).mean(1)
        inside = np.square(centred @ self.components.T.astype(np.float64)).sum(1)
        return {"mean_image": total, "pca": np.maximum(total - inside / centred.shape[1], 0)}
