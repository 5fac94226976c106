"""How little each image looks like the others, by fits that it had no part in.

What stays shared are the networks, which saw all images; of hundreds of images and more that hides
little (docs/calibration.md has the figures).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from anoscan.core.arrays import Floats
from anoscan.core.errors import InputError, UsageError
from anoscan.core.progress import OnProgress, notify, on_reading
from anoscan.core.results import ModelReference, Skipped, Suspect, SuspectsReport
from anoscan.core.runtime import Runtime, random_stream
from anoscan.dataset.image_array import ImageArray
from anoscan.dataset.split import dealt, together
from anoscan.images.files import ImageFile, find
from anoscan.images.layout import training_paths
from anoscan.model.judge import nothing_readable
from anoscan.model.model import Model
from anoscan.model.scorer import Scorer
from anoscan.scoring import calibration
from anoscan.scoring.measure import Measurer, chunks, fit_sums, term_sums

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
    pixels: Floats,
    groups: Sequence[bytes],
    rows: np.ndarray | None = None,
) -> np.ndarray:
    """How suspect images (n, c, s, s) are that a model was trained on, (n,).

    Twice: what a term takes for usual comes from the images of other folds, in the second round
    without those that the first one suspected, so that a few strangers cannot vouch for each
    other. With `rows` it comes from these images alone. Images whose `groups` is the same do not
    vouch for each other either; see `material.together`.
    """
    n = len(pixels)
    scorer, usual = Scorer(model), np.zeros(n, dtype=bool)
    usual[slice(None) if rows is None else rows] = True
    folds = dealt(groups, FOLDS, random_stream(model.config.seed, "suspects"))
    if len(folds) == 1:
        raise InputError("the images are all the same picture: none is more suspect than another.")
    first = scorer.among_themselves(_cross_fitted(model, pixels, folds, usual))
    usual[np.argsort(-first, kind="stable")[: _share(n)]] = False
    return scorer.among_themselves(_cross_fitted(model, pixels, folds, usual))


def _share(n: int) -> int:
    return max(1, round(SHARE * n))


def _cross_fitted(
    model: Model,
    pixels: Floats,
    folds: Sequence[np.ndarray],
    usual: np.ndarray,
) -> np.ndarray:
    """Raw terms (n, k), each by fits from the `usual` images (n,) of the other folds."""
    names, read, device = list(model.fitted), pixels.__getitem__, model.measurer.device
    sums = [
        term_sums(model.networks, names, chunks(rows[usual[rows]], read, device)) for rows in folds
    ]
    filled = [number for number, rows in enumerate(folds) if usual[rows].any()]
    terms = np.empty((len(pixels), len(names)))
    for number, rows in enumerate(folds):
        # Where all others are suspect, the images have to be their own witnesses.
        known = [other for other in filled if other != number] or filled
        fitted = fit_sums([sums[other] for other in known])
        terms[rows] = Measurer(model.networks, fitted, model.rule).terms(pixels, rows)
    return terms


def rank(
    model: Model,
    reference: ModelReference,
    runtime: Runtime,
    paths: Sequence[str | Path],
    on_progress: OnProgress,
) -> SuspectsReport:
    """Rank images that a model was trained on by how little they look like the others.

    Parameters
    ----------
    model : Model
    reference : ModelReference
        Of the model, for the report.
    runtime : Runtime
    paths : sequence of paths
        As for `Detector.train`: of a folder laid out like MVTec AD, ``train/good`` alone.
    on_progress : callable

    Raises
    ------
    InputError
        When too few images can be read.
    UsageError
        For a model of patches.
    """
    check(FEWEST, patches=model.rule.patch is not None)
    normal, narrowed = training_paths(paths)
    files = find(normal)
    notify(on_progress, "reading", narrowed, len(files))
    array, skipped = ImageArray.load(
        files, model.rule, workers=runtime.workers, on_progress=on_reading(on_progress)
    )
    if not len(array):
        raise nothing_readable(skipped)
    check(len(array), patches=False)
    groups = together(array.images, array.digests)
    found = scores(model, array.pixels, groups)
    return listed(reference, Suspicion(array.images, array.digests, found, skipped))


def listed(reference: ModelReference, found: Suspicion) -> SuspectsReport:
    """Report of how suspect images are, the most suspect first."""
    n = len(found.scores)
    # Against the others: an image is no witness of how odd it is itself.
    p = calibration.p_values(found.scores, found.scores) - 1 / (n + 1)
    return SuspectsReport(
        model=reference,
        images=tuple(
            Suspect(
                rank=rank,
                path=found.images[row].path,
                score=float(found.scores[row]),
                p_value=float(p[row] * (n + 1) / n),
            )
            for rank, row in enumerate(found.order, start=1)
        ),
        skipped=tuple(found.skipped),
    )
