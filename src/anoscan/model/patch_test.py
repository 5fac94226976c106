"""The patch test: set the weight of each term of the score without labels.

Rectangles from other images are pasted into held-out normals. A term that does not distinguish the
results from unchanged images gets a low weight. Its distance is noise where normal images differ
more among themselves than a patch makes them differ.
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
        - 0 for a term that does not count in images so small (`Term.least_side`);
        - the mean of `own` for a term with its own `Term.weight`;
        - max(2 AUROC - 1, 0) of patched against unchanged images for a narrow term;
        - the square root of that for others, which may still find images anomalous as a whole;
        - at least `Term.least_weight`;
        - any of these times `Term.factor`, for a term that has one;
        - 0 where a term that replaces it counts (`Term.unless`).
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
        values[-1] = max(values[-1], term.least_weight)
        if term.factor is not None:
            values[-1] *= term.factor(measurer.fitted[name], pixels.shape[-1])
    bounded: np.ndarray = np.clip(np.array(values), 0, 1)
    counted = {name for name, weight in zip(measurer.fitted, bounded, strict=True) if weight}
    replaced = [
        not counted.isdisjoint(registry.load("terms", name).unless) for name in measurer.fitted
    ]
    bounded[replaced] = 0
    return bounded


def _pasted(measurer: Measurer, pixels: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return raw terms (n, k) of images with a pasted patch, and whether it changed each, (n,)."""
    terms, changed = [], []
    for index, x in enumerate(chunks(np.arange(len(pixels)), pixels.__getitem__, measurer.device)):
        patched = cut_paste(x, random_stream(seed, "self-test", index), share=1)
        terms.append(measurer.measure(patched).terms)
        changed.append((patched != x).flatten(1).any(1).cpu().numpy())
    return np.concatenate(terms), np.concatenate(changed)
