"""Check whether a model still fits new images, by comparing a batch with the calibration images.

Scores drift when cameras age, and when lamps or products are changed. A threshold that was set on
normal images from before the change promises nothing about images from after it.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from scipy.stats import ks_2samp

from anoscan.core.errors import InputError
from anoscan.core.progress import OnProgress, Progress, notify
from anoscan.core.results import DriftCheck, DriftReport, ModelReference, Skipped
from anoscan.images.files import find
from anoscan.images.layout import unseen_paths
from anoscan.images.mismatch import Look
from anoscan.model.judge import TERMS_ALONE, Judge, nothing_readable
from anoscan.scoring import calibration
from anoscan.scoring.choices import DEFAULT_SCORE, ScoreRequest

CHUNK = 64
CERTAIN = 0.01  # a difference counts only when its adjusted p-value is below this
LARGE = 0.1  # and only when its Kolmogorov-Smirnov distance is at least this
MOST_MISMATCHES = 0.05  # share of the batch: above it, mismatches mean that the model does not fit
FEWEST = 20  # images: a batch of fewer can hardly show a drift


def compare(
    judge: Judge,
    reference: ModelReference,
    paths: Sequence[str | Path],
    on_progress: OnProgress,
) -> DriftReport:
    """Compare images, most of which are normal, with the calibration images of a model.

    The score, each term, brightness and sharpness are compared by a two-sample Kolmogorov-Smirnov
    test each. The p-values are adjusted for the number of tests (Holm 1979). A difference counts
    when it is both certain and large, because a batch of thousands of images shows differences that
    change no verdict.

    In a folder laid out like MVTec AD, only ``test/good`` is compared. Training images have lower
    scores than new images, and the defects in ``test`` are no drift. `reference` names the model in
    the report, and `on_progress` is called after each batch.

    Raises
    ------
    InputError
        When no image is given, or none can be read.
    """
    found, narrowed = unseen_paths(paths)
    files = find(found)
    notify(on_progress, "scoring", narrowed, len(files))
    terms, looks, skipped, unlike = [], [], [], 0
    known = judge.model.calibration.looks
    for batch in judge.measured(files, CHUNK, wanted=TERMS_ALONE):
        for decoded, row, *_ in batch:
            if isinstance(decoded, Skipped):
                skipped.append(decoded)
                continue
            terms.append(row)
            looks.append(decoded.look)
            unlike += known.reasons(decoded.look) is not None
        done = len(terms) + len(skipped)
        on_progress(Progress("scoring", done, len(files)))
    if not terms:
        raise nothing_readable(skipped) if skipped else InputError("no images given.")
    scores = judge.scorer.scores(np.array(terms), DEFAULT_SCORE)
    checks = _checks(_samples(judge, np.array(terms), scores, looks))
    threshold = judge.threshold(ScoreRequest())
    drifted = [check.name for check in checks if check.drifted]
    many = unlike > max(1, MOST_MISMATCHES * len(terms))
    fits = not drifted and not many
    return DriftReport(
        model=reference,
        counts={"compared": len(terms), "mismatch": unlike, "skipped": len(skipped)},
        calibration_images=threshold.calibration_images,
        anomalous_share=float((scores > threshold.score).mean()),
        false_alarm_rate=threshold.effective_rate,
        fits=fits,
        advice=_advice(checks, many, len(terms)),
        checks=checks,
        skipped=tuple(skipped),
    )


def _samples(
    judge: Judge, terms: np.ndarray, scores: np.ndarray, looks: Sequence[Look]
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Return what is compared, by name: values of the calibration images and of the batch, 1-D."""
    calibration = judge.model.calibration
    found = {"score": (judge.scorer.calibration_scores(DEFAULT_SCORE), scores)}
    present = list(judge.model.fitted)
    for name in judge.scorer.terms(DEFAULT_SCORE):
        column = present.index(name)
        found[name] = (calibration.terms[:, column], terms[:, column])
    known = calibration.looks.values
    found["brightness"] = (known[:, 2], np.array([look.brightness for look in looks]))
    found["sharpness"] = (known[:, 3], np.array([look.sharpness for look in looks]))
    return found


def _checks(samples: dict[str, tuple[np.ndarray, np.ndarray]]) -> tuple[DriftCheck, ...]:
    tests = [ks_2samp(before, now) for before, now in samples.values()]
    adjusted = calibration.holm(np.array([test.pvalue for test in tests]))
    return tuple(
        DriftCheck(
            name=name,
            statistic=float(test.statistic),
            p_value=float(test.pvalue),
            adjusted_p_value=float(p),
            drifted=bool(p < CERTAIN and test.statistic >= LARGE),
            calibration_median=float(np.median(before)),
            batch_median=float(np.median(now)),
        )
        for (name, (before, now)), test, p in zip(samples.items(), tests, adjusted, strict=True)
    )


def _tamer(check: DriftCheck) -> bool:
    looks = ("brightness", "sharpness")  # a lower value of these does not mean less anomalous
    return check.name not in looks and check.batch_median < check.calibration_median


def _advice(checks: Sequence[DriftCheck], many: bool, n: int) -> str:
    drifted = [check.name for check in checks if check.drifted]
    if drifted and not many and all(_tamer(check) for check in checks if check.drifted):
        return (
            f"the model no longer fits: {', '.join(drifted)} drifted to less than usual. Images "
            "that the model was trained on look like that: give it others. If it never saw these, "
            "set the threshold anew with anoscan calibrate."
        )
    if drifted or many:
        reasons = [f"{', '.join(drifted)} drifted"] * bool(drifted)
        reasons += ["many images are unlike every normal one (mismatch)"] * many
        return (
            f"the model no longer fits: {'; '.join(reasons)}. If these images are normal, set the "
            "threshold anew with anoscan calibrate, and train again if many are then still odd."
        )
    if n < FEWEST:
        return f"no drift was found, but {n} images could hardly show one: give {FEWEST} or more."
    return "the model still fits: no certain and large difference from the calibration images."
