"""The patch test: set the weight of each term of the score without labels.

Rectangles from other images are pasted into held-out normals. A term that does not distinguish
these images from the unchanged ones gets a low weight. Where normal images differ more among
themselves than a patch makes them differ, the distance of the term is noise.
"""

from __future__ import annotations

import numpy as np

from anoscan.core import registry
from anoscan.core.runtime import random_stream
from anoscan.networks.augmentation import cut_paste
from anoscan.scoring.measure import Measurer, chunks
from anoscan.scoring.terms import Term

MOST_IMAGES = 512


def term_weights(
    measurer: Measurer, pixels: np.ndarray, clean: np.ndarray, own: np.ndarray, seed: int
) -> np.ndarray:
    """Compute the weights of the terms, in the order of `Measurer.fitted`.

    Parameters
    ----------
    measurer : Measurer
        The networks and the fitted terms.
    pixels : ndarray of shape (n, c, s, s), float32 in [-1, 1]
        Held-out normals, or parts of them.
    clean : ndarray of shape (m, k)
        The raw terms of the unchanged images: of all held-out normals, or of `pixels`.
    own : ndarray of shape (l, k)
        `Measured.weights` of the held-out images, for terms that have a `Term.weight`.
    seed : int
        The seed of the patches.

    Returns
    -------
    ndarray of shape (k,), float64 in [0, 1]
        The weights. They are:

        - 0 for a term that does not count in images so small (`Term.least_side`);
        - the mean of `own` for a term with its own `Term.weight`;
        - max(2 AUROC - 1, 0) for a narrow term, where the AUROC is that of the patched images
          against the unchanged ones;
        - the square root of that for every other term. A patch is a narrow idea of an anomaly: a
          term that hardly finds patches may still find an image that is anomalous as a whole.
    """
    from sklearn.metrics import roc_auc_score

    n = min(len(pixels), MOST_IMAGES)
    pasted, changed = _pasted(measurer, pixels[:n], seed)
    values = []
    for column, name in enumerate(measurer.fitted):
        term: Term = registry.load("terms", name)
        if pixels.shape[-1] < term.least_side:
            values.append(0.0)
        elif term.weight is not None:
            values.append(own[:, column].mean())
        elif not changed.any():
            values.append(0.0)
        else:
            scores = np.concatenate([clean[:, column], pasted[changed, column]])
            odd = np.arange(len(scores)) >= len(clean)
            seen = max(2 * roc_auc_score(odd, scores) - 1, 0)
            values.append(seen if term.narrow else seen**0.5)
    bounded: np.ndarray = np.clip(np.array(values), 0, 1)
    return bounded


def _pasted(measurer: Measurer, pixels: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return raw terms (n, k) of images with a pasted patch, and whether it changed each, (n,)."""
    terms, changed = [], []
    for index, x in enumerate(chunks(np.arange(len(pixels)), pixels.__getitem__, measurer.device)):
        patched = cut_paste(x, random_stream(seed, "self-test", index), share=1)
        terms.append(measurer.measure(patched).terms)
        changed.append((patched != x).flatten(1).any(1).cpu().numpy())
    return np.concatenate(terms), np.concatenate(changed)
