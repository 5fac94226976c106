"""Anomalies among the images that were taken for normal, found before they do harm.

A folder of normals is seldom clean. Every image is scored by fits that it had no part in, and all
are ranked. What stays shared are the networks, which saw all images; of hundreds of images and more
that hides little (docs/calibration.md has the figures).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from anoscan import calibration, images, labelled
from anoscan.detector import Detector
from anoscan.errors import InputError, UsageError
from anoscan.images import ImageFile
from anoscan.judgement import Judge, nothing_readable
from anoscan.learn import on_reading
from anoscan.runtime import stream
from anoscan.scoring import chunks, fit_sums, measure, term_sums
from anoscan.terms import Tensors
from anoscan.training import OnProgress
from anoscan.trainset import ImageArray
from anoscan.upkeep import Suspect, SuspectsReport

FOLDS = 5
SHARE = 0.1  # of the images: what `--drop-suspects` drops, and what the second round leaves out
FEWEST = 20


@dataclass(frozen=True)
class Ranking:
    """Images, most suspect first, and the contents (SHA-256) of the first tenth."""

    report: SuspectsReport
    worst: frozenset[bytes]


def rank(detector: Detector, files: Sequence[ImageFile], on_progress: OnProgress) -> Ranking:
    """Rank images that a model was trained on by how little they look like the others.

    Twice: what a term takes for usual comes from the images of other folds, in the second round
    without the tenth that the first one suspected, so that a few strangers cannot vouch for each
    other.

    Raises
    ------
    InputError
        When too few images can be read.
    UsageError
        For a model of patches.
    """
    model, runtime = detector.model, detector.runtime
    if model.rule.patch is not None:
        raise UsageError("suspects are looked for among whole images, not with --patches.")
    array, skipped = ImageArray.load(
        files, model.rule, workers=runtime.workers, on_progress=on_reading(on_progress)
    )
    n = len(array)
    if not n:
        raise nothing_readable(skipped)
    if n < FEWEST:
        raise InputError(f"{n} readable images are too few to suspect any: {FEWEST} are needed.")
    judge = Judge(model, runtime)
    scores = judge.among_themselves(_cross_fitted(detector, array, np.ones(n, dtype=bool)))
    tenth = max(1, round(SHARE * n))
    usual = np.ones(n, dtype=bool)
    usual[np.argsort(-scores, kind="stable")[:tenth]] = False
    scores = judge.among_themselves(_cross_fitted(detector, array, usual))
    order = sorted(range(n), key=lambda row: (-scores[row], array.images[row].path))
    # Against the others: an image is no witness of how odd it is itself.
    p = calibration.p_values(scores, scores) - 1 / (n + 1)
    found = tuple(
        Suspect(
            rank=rank,
            path=array.images[row].path,
            score=float(scores[row]),
            p_value=float(p[row] * (n + 1) / n),
        )
        for rank, row in enumerate(order, start=1)
    )
    report = SuspectsReport(model=detector.reference, images=found, skipped=tuple(skipped))
    return Ranking(report, frozenset(array.digests[row] for row in order[:tenth]))


def _cross_fitted(detector: Detector, array: ImageArray, usual: np.ndarray) -> np.ndarray:
    """Raw terms (n, k), each by fits from the `usual` images (n,) of the other folds."""
    model, device = detector.model, detector.runtime.device
    names = list(model.fitted)
    order = torch.randperm(len(array), generator=stream(model.config.seed, "suspects")).numpy()
    folds = [np.sort(order[number::FOLDS]) for number in range(FOLDS)]
    sums = [
        term_sums(
            model.networks, names, chunks(rows[usual[rows]], array.pixels.__getitem__, device)
        )
        for rows in folds
    ]
    terms = np.empty((len(array), len(names)))
    for number, rows in enumerate(folds):
        others = [each for other, each in enumerate(sums) if other != number]
        fitted: dict[str, Tensors] = fit_sums(others)
        batches = chunks(rows, array.pixels.__getitem__, device)
        terms[rows] = np.concatenate(
            [measure(model.networks, fitted, batch).terms for batch in batches]
        )
    return terms


def train(
    paths: Sequence[str | Path], *, drop: bool, on_progress: OnProgress, **options: Any
) -> tuple[Detector, Ranking]:
    """Train, rank the images and, to `drop` suspects, train again without the first tenth.

    Held-out images are never dropped: without the oddest of them the threshold would be too low,
    and the false-alarm rate a broken promise. Where there are anomalies among them, fewer of those
    to come are found.

    Parameters
    ----------
    paths, options
        As for `Detector.train`.
    """
    if drop and options.get("resume"):
        raise UsageError(
            "--resume does not go with --drop-suspects, which trains twice.",
            hint="Start again, or give --clean-report and remove suspects by hand.",
        )
    detector = Detector.train(paths, on_progress=on_progress, **options)
    normal, _ = labelled.training_paths(paths)
    ranking = rank(detector, images.find(normal), on_progress)
    if drop:
        again = options | {"force": True}
        detector = Detector.train(paths, on_progress=on_progress, without=ranking.worst, **again)
        report = dataclasses.replace(ranking.report, model=detector.reference)
        ranking = dataclasses.replace(ranking, report=report)
    return detector, ranking
