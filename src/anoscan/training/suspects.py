"""Rank images taken for normal by how unlike the others they are, to find anomalies among them.

The score of an image comes from fits that it had no part in. Only the networks were trained on all
images. With some hundred images and more this hides few anomalies (docs/calibration.md;
docs/decisions.md has figures).
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
from anoscan.model.score_of_terms import Scorer
from anoscan.scoring import calibration
from anoscan.scoring.fitting import fit_components
from anoscan.scoring.measure import Measurer, chunks, fit_sums, term_sums

FOLDS = 5
FEWEST = 20  # images; fewer are not ranked
# Share of the images that are left out of fits, as the most suspect ones. A Gaussian fitted with
# anomalies gives them low scores. A Gaussian fitted without the most unusual normal images gives
# these a high score, but anomalies, which lie farther out, still get a higher one.
SHARE = 0.2


@dataclass(frozen=True)
class Suspicion:
    """Images taken for normal, their SHA-256 digests, and how suspect each is.

    A higher score (n,) is more suspect.
    """

    images: Sequence[ImageFile]
    digests: Sequence[bytes]
    scores: np.ndarray
    skipped: Sequence[Skipped]

    @property
    def order(self) -> list[int]:
        """Rows of the images, most suspect first; images of equal score are in path order."""
        return sorted(
            range(len(self.images)), key=lambda row: (-self.scores[row], self.images[row].path)
        )

    @property
    def worst(self) -> frozenset[bytes]:
        """Digests of the images that fits should leave out: the most suspect `SHARE` of all."""
        return frozenset(self.digests[row] for row in self.order[: _share(len(self.images))])


def check(images: int, *, patches: bool) -> None:
    """Refuse to look for suspects where they cannot be found; `images` counts the readable ones.

    Raises
    ------
    InputError
        When there are fewer than `FEWEST` images.
    UsageError
        When the model is one of patches.
    """
    if patches:
        raise UsageError("suspects are looked for among whole images, not with --patches.")
    if images < FEWEST:
        raise InputError(
            f"{images} readable images are too few to suspect any: {FEWEST} are needed."
        )


def scores(
    measurer: Measurer,
    scorer: Scorer,
    seed: int,
    pixels: Floats,
    groups: Sequence[bytes],
    rows: np.ndarray | None = None,
) -> np.ndarray:
    """Score how suspect images of a training are, (n,); a higher score is more suspect.

    Each of `FOLDS` folds is measured by terms that are fitted on the other folds. This is done
    twice. The second time, the most suspect `SHARE` of the images is left out of the fits.
    Otherwise a few similar anomalies would make each other look normal.

    Parameters
    ----------
    measurer : Measurer
        Has the networks that learned from the images; its terms are fitted anew.
    scorer : Scorer
    seed : int
        Seed of the folds.
    pixels : ndarray of shape (n, c, s, s), float32
    groups : sequence of bytes
        Group of each image; see `dataset.split.together`. Images of one group are in the same fold,
        so that copies do not take part in the fits for each other.
    rows : ndarray of int, optional
        Rows of the images that terms may be fitted on; by default all.

    Raises
    ------
    InputError
        When all images are in one group.
    """
    n = len(pixels)
    usual = np.zeros(n, dtype=bool)
    usual[slice(None) if rows is None else rows] = True
    folds = dealt(groups, FOLDS, random_stream(seed, "suspects"))
    if len(folds) == 1:
        raise InputError("the images are all the same picture: none is more suspect than another.")
    first = scorer.among_themselves(_cross_fitted(measurer, seed, pixels, folds, usual))
    usual[np.argsort(-first, kind="stable")[: _share(n)]] = False
    return scorer.among_themselves(_cross_fitted(measurer, seed, pixels, folds, usual))


def _share(n: int) -> int:
    return max(1, round(SHARE * n))


def _cross_fitted(
    measurer: Measurer, seed: int, pixels: Floats, folds: Sequence[np.ndarray], usual: np.ndarray
) -> np.ndarray:
    """Measure the raw terms (n, k) of each fold by fits on the `usual` images of the other folds.

    `folds` are the rows of each fold. `usual` (n,) is True for images that fits may use.
    """
    names, networks = list(measurer.fitted), measurer.networks
    read, device = pixels.__getitem__, measurer.device
    sums = [term_sums(networks, names, chunks(rows[usual[rows]], read, device)) for rows in folds]
    filled = [number for number, rows in enumerate(folds) if usual[rows].any()]
    terms = np.empty((len(pixels), len(names)))
    for number, rows in enumerate(folds):
        # Where the other folds hold only suspects, terms are fitted on the images' own fold.
        known = [other for other in filled if other != number] or filled
        inside = np.concatenate([folds[other][usual[folds[other]]] for other in known])
        fitted = fit_sums([sums[other] for other in known])
        fitted |= fit_components(names, pixels, np.sort(inside), seed, device)[0]
        terms[rows] = Measurer(networks, fitted, measurer.rule).terms(pixels, rows)
    return terms


def rank(
    model: Model,
    reference: ModelReference,
    runtime: Runtime,
    paths: Sequence[str | Path],
    on_progress: OnProgress,
) -> SuspectsReport:
    """Rank images that a model was trained on by how unlike the others they are.

    `reference` names the model in the report. `paths` are those of `Detector.train`: in a folder
    laid out like MVTec AD, only ``train/good`` is read.

    Raises
    ------
    InputError
        When too few images can be read, or all are copies of one image.
    UsageError
        When the model is one of patches.
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
    scorer = Scorer(model.fitted, model.calibration)
    found = scores(model.measurer, scorer, model.config.seed, array.pixels, groups)
    return listed(reference, Suspicion(array.images, array.digests, found, skipped))


def listed(reference: ModelReference, found: Suspicion) -> SuspectsReport:
    """Report how suspect images are, the most suspect first; `reference` names the model."""
    n = len(found.scores)
    # `p_values` adds one for the query itself, which is already among the images here. So the
    # p-value is the plain share of the images with a score at least as high.
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
