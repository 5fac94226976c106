"""Compare a model with its successor, on normal images that the successor did not learn from."""

from __future__ import annotations

from collections.abc import Sequence

from anoscan.core.progress import OnProgress
from anoscan.core.results import ComparedModel, OnHeldOut
from anoscan.evaluation import drift
from anoscan.evaluation.evaluate import Subject
from anoscan.scoring.choices import ScoreRequest


def on_held_out(subject: Subject, paths: Sequence[str], on_progress: OnProgress) -> OnHeldOut:
    """Measure what a model says of held-out normals; raise InputError where none can be read."""
    found = drift.compare(subject.judge, subject.reference, paths, on_progress)
    score = next(check for check in found.checks if check.name == "score")
    return OnHeldOut(
        model=subject.reference,
        anomalous_share=found.anomalous_share,
        false_alarm_rate=found.false_alarm_rate,
        threshold=subject.judge.threshold(ScoreRequest()).score,
        score_median=score.batch_median,
        calibration_median=score.calibration_median,
        fits=found.fits,
    )


def caveat(labelled: Sequence[ComparedModel] | None) -> str | None:
    """Return a warning where labels say that the second of two models is worse, else None."""
    if not labelled or (interval := labelled[1].difference_ci95) is None or interval[1] >= 0:
        return None
    return (
        "on the labelled images the new model is worse than the old one, and that is not due to "
        "the choice of images."
    )
