"""How little each image looks like the others, by fits that it had no part in.

What stays shared are the networks, which saw all images; of hundreds of images and more that hides
little (docs/calibration.md has the figures).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from anoscan.errors import InputError, UsageError
from anoscan.images import ImageFile
from anoscan.judgement import Judge
from anoscan.material import dealt
from anoscan.model import Model
from anoscan.results import Skipped
from anoscan.runtime import Runtime, stream
from anoscan.scoring import chunks, fit_sums, measure, term_sums
from anoscan.tiles import Floats

FOLDS = 5
FEWEST = 20
# Of the images, left out of fits. A Gaussian that holds anomalies calls them usual; one without
# the outermost normal images calls these odd, but still less so than what lies farther out.
SHARE = 0.2


@dataclass(frozen=True)
class Suspicion:
    """Images taken for normal, and how suspect each is.

    Parameters
    ----------
    images : sequence of ImageFile
    digests : sequence of bytes
        SHA-256 of their content.
    scores : ndarray of shape (n,)
        Higher is more suspect.
    skipped : sequence of Skipped
        What could not be read.
    """

    images: Sequence[ImageFile]
    digests: Sequence[bytes]
    scores: np.ndarray
    skipped: Sequence[Skipped]

    @property
    def order(self) -> list[int]:
        """Rows, most suspect first; ties in the order of paths."""
        return sorted(
            range(len(self.images)), key=lambda row: (-self.scores[row], self.images[row].path)
        )

    @property
    def worst(self) -> frozenset[bytes]:
        """Contents of the images that fits are better made without: the most suspect `SHARE`."""
        return frozenset(self.digests[row] for row in self.order[: _share(len(self.images))])


def check(images: int, *, patches: bool) -> None:
    """Refuse to look for suspects where none can be told.

    Raises
    ------
    InputError
        When there are too few readable images.
    UsageError
        For a model of patches.
    """
    if patches:
        raise UsageError("suspects are looked for among whole images, not with --patches.")
    if images < FEWEST:
        raise InputError(
            f"{images} readable images are too few to suspect any: {FEWEST} are needed."
        )


def scores(
    model: Model,
    runtime: Runtime,
    pixels: Floats,
    kin: Sequence[bytes],
    rows: np.ndarray | None = None,
) -> np.ndarray:
    """How suspect images (n, c, s, s) are that a model was trained on, (n,).

    Twice: what a term takes for usual comes from the images of other folds, in the second round
    without those that the first one suspected, so that a few strangers cannot vouch for each
    other. With `rows` it comes from these images alone. Images whose `kin` is the same do not
    vouch for each other either; see `material.together`.
    """
    n = len(pixels)
    judge, usual = Judge(model, runtime), np.zeros(n, dtype=bool)
    usual[slice(None) if rows is None else rows] = True
    folds = dealt(kin, FOLDS, stream(model.config.seed, "suspects"))
    if len(folds) == 1:
        raise InputError("the images are all the same picture: none is more suspect than another.")
    first = judge.among_themselves(_cross_fitted(model, runtime, pixels, folds, usual))
    usual[np.argsort(-first, kind="stable")[: _share(n)]] = False
    return judge.among_themselves(_cross_fitted(model, runtime, pixels, folds, usual))


def _share(n: int) -> int:
    return max(1, round(SHARE * n))


def _cross_fitted(
    model: Model,
    runtime: Runtime,
    pixels: Floats,
    folds: Sequence[np.ndarray],
    usual: np.ndarray,
) -> np.ndarray:
    """Raw terms (n, k), each by fits from the `usual` images (n,) of the other folds."""
    names, read, device = list(model.fitted), pixels.__getitem__, runtime.device
    sums = [
        term_sums(model.networks, names, chunks(rows[usual[rows]], read, device)) for rows in folds
    ]
    filled = [number for number, rows in enumerate(folds) if usual[rows].any()]
    terms = np.empty((len(pixels), len(names)))
    for number, rows in enumerate(folds):
        # Where all others are suspect, the images have to be their own witnesses.
        known = [other for other in filled if other != number] or filled
        fitted = fit_sums([sums[other] for other in known])
        batches = chunks(rows, read, device)
        terms[rows] = np.concatenate(
            [measure(model.networks, fitted, batch).terms for batch in batches]
        )
    return terms
