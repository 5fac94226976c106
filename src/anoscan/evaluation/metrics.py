"""Metrics of detection: how well anomaly scores agree with labels."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from anoscan.core.results import AtThreshold, Confusion, Curves, Histogram, PrecisionRecall, Roc

_CURVE_POINTS = 200
_BINS = 10, 60  # fewest and most bins of a histogram


@dataclass(frozen=True, kw_only=True)
class Detection:
    """How well scores order images; where all metrics are None, `undefined` says why."""

    auroc: float | None
    auroc_ci95: tuple[float, float] | None
    average_precision: float | None
    undefined: str | None


@dataclass(frozen=True, kw_only=True)
class Difference:
    """AUROC of one model minus AUROC of another, with its 95 % interval."""

    value: float
    ci95: tuple[float, float]


def detection(
    scores: NDArray[np.floating],
    anomalous: NDArray[np.bool_],
    *,
    seed: int = 0,
    resamples: int = 1000,
) -> Detection:
    """Measure how well scores put anomalous images above normal ones.

    The interval is a percentile bootstrap in which normal and anomalous images are resampled
    separately. It says how much the AUROC would change with other images of the same kinds. Where
    all scores of one class lie above all of the other, every resample has the same AUROC (1 or 0).
    Then the other end of the interval follows Newcombe (see `_of_separated`).

    Parameters
    ----------
    scores : ndarray of float, shape (n,)
        Anomaly scores, finite. A higher score is more anomalous.
    anomalous : ndarray of bool, shape (n,)
    seed, resamples : int
        Seed and number of bootstrap samples. 0 samples leave the interval out.

    Raises
    ------
    ValueError
        When shapes differ or a score is not finite.
    """
    from sklearn.metrics import average_precision_score, roc_auc_score

    scores, anomalous = _checked(scores, anomalous)
    if reason := _undefined(anomalous):
        return Detection(auroc=None, auroc_ci95=None, average_precision=None, undefined=reason)
    auroc = float(roc_auc_score(anomalous, scores))
    interval = None
    if resamples:
        samples = _bootstrap(scores, anomalous, np.random.default_rng(seed), resamples)
        low, high = (float(value) for value in np.quantile(samples, (0.025, 0.975)))
        # With few resamples, or by rounding, the estimate can lie outside the interval.
        interval = min(low, auroc), max(high, auroc)
        normal, odd = scores[~anomalous], scores[anomalous]
        if normal.max() < odd.min():
            interval = _of_separated(normal.size, odd.size), 1.0
        elif odd.max() < normal.min():
            interval = 0.0, 1 - _of_separated(normal.size, odd.size)
    return Detection(
        auroc=auroc,
        auroc_ci95=interval,
        # Rounding can give more than 1.
        average_precision=min(float(average_precision_score(anomalous, scores)), 1.0),
        undefined=None,
    )


def at_threshold(
    scores: NDArray[np.floating], anomalous: NDArray[np.bool_], threshold: float
) -> AtThreshold:
    """Measure the decisions of a threshold: an image is anomalous when its score (n,) is above it.

    The threshold was set without these labels (n,). `false_alarm_rate` is None without normal
    images, `precision` when no image is called anomalous, `recall` and `f1` without anomalous
    images.

    Raises
    ------
    ValueError
        When shapes differ or a score is not finite.
    """
    from sklearn.metrics import precision_recall_fscore_support

    scores, anomalous = _checked(scores, anomalous)
    flagged = scores > threshold
    precision, recall, f1 = 0.0, 0.0, 0.0
    if anomalous.size:
        precision, recall, f1, _ = precision_recall_fscore_support(
            anomalous, flagged, average="binary", zero_division=0.0
        )
    normal = ~anomalous
    return AtThreshold(
        score=float(threshold),
        false_alarm_rate=float(flagged[normal].mean()) if normal.any() else None,
        recall=float(recall) if anomalous.any() else None,
        precision=float(precision) if flagged.any() else None,
        f1=float(f1) if anomalous.any() else None,
        confusion=Confusion(
            true_positive=int((flagged & anomalous).sum()),
            false_positive=int((flagged & normal).sum()),
            false_negative=int((~flagged & anomalous).sum()),
            true_negative=int((~flagged & normal).sum()),
        ),
    )


def difference(
    scores: NDArray[np.floating],
    base: NDArray[np.floating],
    anomalous: NDArray[np.bool_],
    *,
    seed: int = 0,
    resamples: int = 1000,
) -> Difference | None:
    """Return the AUROC of `scores` minus that of `base` (both (n,)), on the same images.

    The interval is a paired percentile bootstrap. Both AUROCs are computed on the same resampled
    images, so that what is hard for both models cancels out. The result is None unless the labels
    have both classes.

    Raises
    ------
    ValueError
        When shapes differ or a score is not finite.
    """
    scores, anomalous = _checked(scores, anomalous)
    base, _ = _checked(base, anomalous)
    if _undefined(anomalous):
        return None
    # Draws depend only on the seed and on the numbers of images, so the same seed pairs them.
    one, other = (
        _bootstrap(column, anomalous, np.random.default_rng(seed), resamples)
        for column in (scores, base)
    )
    value = (detection(scores, anomalous, resamples=0).auroc or 0.0) - (
        detection(base, anomalous, resamples=0).auroc or 0.0
    )
    low, high = (float(end) for end in np.quantile(one - other, (0.025, 0.975)))
    return Difference(value=value, ci95=(min(low, value), max(high, value)))


def curves(scores: NDArray[np.floating], anomalous: NDArray[np.bool_]) -> Curves | None:
    """Return the ROC curve, the precision-recall curve, and histograms of the scores (n,).

    At most 200 points of each curve are kept. The result is None unless the labels have both
    classes.

    Raises
    ------
    ValueError
        When shapes differ or a score is not finite.
    """
    from sklearn.metrics import precision_recall_curve, roc_curve

    scores, anomalous = _checked(scores, anomalous)
    if _undefined(anomalous):
        return None
    rate, recall, _ = roc_curve(anomalous, scores)
    precision, found, _ = precision_recall_curve(anomalous, scores, drop_intermediate=True)
    bins = min(max(math.ceil(math.sqrt(scores.size)), _BINS[0]), _BINS[1])
    edges = np.histogram_bin_edges(scores, bins)
    normal, positive = (
        np.histogram(scores[chosen], edges)[0].tolist() for chosen in (~anomalous, anomalous)
    )
    return Curves(
        roc=Roc(false_alarm_rate=_thinned(rate), recall=_thinned(recall)),
        precision_recall=PrecisionRecall(
            recall=_thinned(found[::-1]), precision=_thinned(precision[::-1])
        ),
        scores=Histogram(
            edges=tuple(edges.tolist()), normal=tuple(normal), anomalous=tuple(positive)
        ),
    )


def _thinned(values: NDArray[np.floating]) -> tuple[float, ...]:
    count = min(len(values), _CURVE_POINTS)
    return tuple(values[np.linspace(0, len(values) - 1, count).round().astype(int)].tolist())


def _checked(
    scores: NDArray[np.floating], anomalous: NDArray[np.bool_]
) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    values = np.asarray(scores, dtype=np.float64)
    truth = np.asarray(anomalous, dtype=np.bool_)
    if values.ndim != 1 or values.shape != truth.shape:
        raise ValueError(f"scores {values.shape} and labels {truth.shape} must be (n,) alike")
    if not np.isfinite(values).all():
        raise ValueError("scores must be finite")
    return values, truth


def _undefined(anomalous: NDArray[np.bool_]) -> str | None:
    if not anomalous.size:
        return "no labelled image could be scored: AUROC needs both classes"
    if anomalous.all():
        return "only anomalous images are labelled: AUROC needs both classes"
    if not anomalous.any():
        return "only normal images are labelled: AUROC needs both classes"
    return None


def _bootstrap(
    scores: NDArray[np.float64],
    anomalous: NDArray[np.bool_],
    generator: np.random.Generator,
    resamples: int,
) -> NDArray[np.float64]:
    """Return the AUROC of each bootstrap sample, (resamples,); the classes are drawn separately."""
    # With ranks instead of scores, counting replaces a sort for every sample.
    distinct, ranks = np.unique(scores, return_inverse=True)
    normal, positive = ranks[~anomalous], ranks[anomalous]

    def counts(ranks: NDArray[np.intp]) -> NDArray[np.intp]:
        drawn = ranks[generator.integers(ranks.size, size=ranks.size)]
        return np.bincount(drawn, minlength=distinct.size)

    return np.array([_auroc(counts(normal), counts(positive)) for _ in range(resamples)])


def _of_separated(normal: int, anomalous: int) -> float:
    """Return the lower end of the 95 % interval of an AUROC of 1: method 5 of Newcombe 2006.

    It is the least value that is at most 1.96 of its own standard errors below 1. The standard
    error is Hanley and McNeil's, with both numbers of images replaced by their mean (Statistics in
    Medicine 25:559-573).
    """
    from scipy.optimize import brentq

    others = (normal + anomalous) / 2 - 1

    def beyond(value: float) -> float:
        spread = (1 - value) / (2 - value) + value / (1 + value)
        variance = value * (1 - value) * (1 + others * spread) / (normal * anomalous)
        return float((1 - value) ** 2 - 1.96**2 * variance)

    # At 1 both sides vanish. Just below 1 the variance is greater, for any numbers of images.
    return float(brentq(beyond, 0, 1 - 1e-9))


def _auroc(normal: NDArray[np.intp], anomalous: NDArray[np.intp]) -> float:
    """Return the share of (normal, anomalous) pairs in the right order; a tie counts one half.

    Both arrays count the images of their class at each distinct score, in ascending order.
    """
    # Numbers of pairs are doubled, so that they stay whole numbers.
    below = 2 * np.cumsum(normal) - normal
    return float(below @ anomalous / (2 * normal.sum() * anomalous.sum()))


def aurocs(
    columns: dict[str, np.ndarray], anomalous: np.ndarray
) -> dict[str, dict[str, float | None]]:
    """Return the AUROC of each named column of scores (n,), or None without both classes."""
    return {
        name: {"auroc": detection(scores, anomalous, resamples=0).auroc}
        for name, scores in columns.items()
    }
