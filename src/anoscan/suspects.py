"""Anomalies among the images that were taken for normal, found before they do harm.

A folder of normals is seldom clean. All images are ranked by `suspicion`; what a model takes for
usual can then be fitted without the first of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from anoscan import calibration, images, labelled, suspicion
from anoscan.judgement import nothing_readable
from anoscan.learn import on_reading
from anoscan.material import together
from anoscan.model import Model
from anoscan.results import ModelReference
from anoscan.runtime import Runtime
from anoscan.suspicion import Suspicion
from anoscan.training import OnProgress, Progress
from anoscan.trainset import ImageArray
from anoscan.upkeep import Suspect, SuspectsReport


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
    suspicion.check(suspicion.FEWEST, patches=model.rule.patch is not None)
    normal, narrowed = labelled.training_paths(paths)
    files = images.find(normal)
    if narrowed:
        on_progress(Progress("reading", 0, len(files), {}, 0.0, narrowed))
    array, skipped = ImageArray.load(
        files, model.rule, workers=runtime.workers, on_progress=on_reading(on_progress)
    )
    if not len(array):
        raise nothing_readable(skipped)
    suspicion.check(len(array), patches=False)
    kin = together(array.images, array.digests)
    scores = suspicion.scores(model, runtime, array.pixels, kin)
    return listed(reference, Suspicion(array.images, array.digests, scores, skipped))


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
