"""How much each term of the score may count, decided without labels.

A term that cannot tell held-out normals from the same images with a foreign patch pasted in says
little about what is odd in images of this kind: where normal images differ more among themselves
than a patch makes them differ, its distance is noise. Such a term gets little weight.
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
    """Weight of each term, (k,) in [0, 1], in the order of `Measurer.fitted`.

    Parameters
    ----------
    measurer : Measurer
    pixels : ndarray of shape (n, c, s, s), float32 in [-1, 1]
        Held-out normals, or parts of them.
    clean : ndarray of shape (n, k)
        Their raw terms.
    own : ndarray of shape (m, k)
        What each held-out image says of terms that have a `weight` of their own; see `Term`.
    seed : int

    Returns
    -------
    ndarray of shape (k,)
        The mean of `own` for terms that have one; for narrow ones 2 AUROC - 1 of the task, 0
        where that is negative; for the others its root, because a patch is a narrow idea of an
        anomaly: a term that hardly sees patches may still see what is odd as a whole. 0 for terms
        that do not count in images so small.
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
    """Raw terms (n, k) of images with a patch, and which of them (n,) the patch changed."""
    terms, changed = [], []
    for index, x in enumerate(chunks(np.arange(len(pixels)), pixels.__getitem__, measurer.device)):
        patched = cut_paste(x, random_stream(seed, "self-test", index), share=1)
        terms.append(measurer.measure(patched).terms)
        changed.append((patched != x).flatten(1).any(1).cpu().numpy())
    return np.concatenate(terms), np.concatenate(changed)
