"""What held-out normal images say of a score: scales, p-values and the threshold.

No network learned from these images; with folds, none of those that measured them did. They put the
terms on a common scale before they are summed, and they are the yardstick of every decision.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from scipy.special import logsumexp
from scipy.stats import false_discovery_control

FOLDS = 10
LEAST_DEVIATION = 0.005  # of a logarithm: a term that hardly differs must not decide alone
# Of the deviation of all images, at least, in a fold: where the others are copies, or one image,
# they say nothing of how much images differ.
OF_ALL = 0.5


@dataclass(frozen=True)
class TermScale:
    """Mean and standard deviation of the logarithm of each term on held-out normals, (k,).

    `weights` (k,) say how much each term counts in the score.
    """

    mean: np.ndarray
    deviation: np.ndarray
    weights: np.ndarray

    @classmethod
    def fit(cls, terms: np.ndarray, weights: np.ndarray) -> TermScale:
        """Scale of terms (n, k), positive float64."""
        logs = _logs(terms)
        deviation = np.maximum(logs.std(0, ddof=min(1, len(logs) - 1)), LEAST_DEVIATION)
        return cls(logs.mean(0), deviation, np.asarray(weights, dtype=np.float64))

    @classmethod
    def of_tiles(cls, moments: np.ndarray, weights: np.ndarray) -> TermScale:
        """Scale of the terms of tiles, from the `tile_moments` of images (n, 3, k)."""
        count, total, squares = moments.sum(0)
        mean = total / count
        deviation = np.sqrt(np.maximum(squares / count - mean**2, LEAST_DEVIATION**2))
        return cls(mean, deviation, np.asarray(weights, dtype=np.float64))

    def of_some(self, every: TermScale) -> TermScale:
        """The scale of all but a few images, kept from being one of none where those are alike.

        `every` is that of all.
        """
        deviation = np.maximum(self.deviation, OF_ALL * every.deviation)
        return TermScale(self.mean, deviation, self.weights)

    def standardise(self, terms: np.ndarray) -> np.ndarray:
        """Terms (n, k) in standard deviations from the usual."""
        standard: np.ndarray = (_logs(terms) - self.mean) / self.deviation
        return standard

    def combine(self, terms: np.ndarray) -> np.ndarray:
        """Anomaly scores (n,): log of the mean exponential of weighted standardised terms (n, k).

        An image is about as odd as its oddest term says: a term that sees nothing takes little
        from one that does, while two that agree count more than one.
        """
        counted = self.weights > 0
        weighted = self.standardise(terms)[:, counted] * self.weights[counted]
        scores: np.ndarray = logsumexp(weighted, axis=1) - np.log(counted.sum())
        return scores


def tile_moments(terms: np.ndarray) -> np.ndarray:
    """Count, sum and sum of squares of the logarithms of one image's tile terms (t, k): (3, k)."""
    logs = _logs(terms)
    return np.stack([np.full(logs.shape[1], float(len(logs))), logs.sum(0), np.square(logs).sum(0)])


def _logs(terms: np.ndarray) -> np.ndarray:
    logs: np.ndarray = np.log(np.maximum(terms, 1e-30))
    return logs


def cross_fitted_scores(terms: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Scores of held-out normals (n,), each with a scale that was fitted without it.

    A query has no part in the scale either: without this, calibration scores would be a little
    too tame and p-values a little too small.
    """
    n, every = len(terms), TermScale.fit(terms, weights)
    scores = np.empty(n)
    fold = np.arange(n) % min(FOLDS, n)
    for number in range(min(FOLDS, n)):
        inside = fold == number
        rest = terms if inside.all() else terms[~inside]
        scores[inside] = TermScale.fit(rest, weights).of_some(every).combine(terms[inside])
    return scores


def cross_fitted_tile_scores(
    terms: np.ndarray, moments: np.ndarray, weights: np.ndarray
) -> np.ndarray:
    """Scores of held-out large images (n,), each on the scale of the tiles of all others.

    Parameters
    ----------
    terms : ndarray of shape (n, k)
        Of the oddest tiles of each image.
    moments : ndarray of shape (n, 3, k)
        Of the tiles of each image.
    weights : ndarray of shape (k,)
    """
    n, every = len(terms), TermScale.of_tiles(moments, weights)
    scores = np.empty(n)
    for row in range(n):
        rest = moments if n == 1 else np.delete(moments, row, axis=0)
        scale = TermScale.of_tiles(rest, weights).of_some(every)
        scores[row] = scale.combine(terms[row : row + 1])[0]
    return scores


def p_values(scores: np.ndarray, calibration: np.ndarray) -> np.ndarray:
    """Conformal p-values (n,): (1 + number of calibration scores >= score) / (n_cal + 1).

    For a normal image exchangeable with the calibration images, P(p <= t) <= t for every t
    (Bates et al. 2023, "Testing for outliers with conformal p-values", arXiv 2104.08279, eq. 2).
    """
    ascending = np.sort(calibration)
    at_least = len(ascending) - np.searchsorted(ascending, scores, side="left")
    values: np.ndarray = (1 + at_least) / (len(ascending) + 1)
    return values


def q_values(p: np.ndarray) -> np.ndarray:
    """Benjamini-Hochberg adjusted p-values (n,): calling all q <= a bounds the FDR by a."""
    if not len(p):
        return p
    adjusted: np.ndarray = false_discovery_control(p, method="bh")
    return adjusted


def holm(p: np.ndarray) -> np.ndarray:
    """Holm's adjusted p-values (n,): the chance of any false rejection is bounded (Holm 1979)."""
    order = np.argsort(p)
    factors = np.arange(len(p), 0, -1)
    adjusted = np.empty(len(p))
    adjusted[order] = np.minimum(np.maximum.accumulate(p[order] * factors), 1)
    return adjusted


def rate_for_recall(anomalous: np.ndarray, recall: float) -> float:
    """Lowest false-alarm rate at which a share of anomalies is found.

    Parameters
    ----------
    anomalous : ndarray of shape (n,), n >= 1
        P-values of labelled anomalies.
    recall : float in (0, 1]
    """
    needed = math.ceil(recall * len(anomalous) - 1e-9)
    return float(np.sort(anomalous)[needed - 1])


def rate_for_cost(anomalous: np.ndarray, n: int, share: float, cost: float) -> float:
    """False-alarm rate of the least expected cost; the lowest among equals.

    Parameters
    ----------
    anomalous : ndarray of shape (m,)
        P-values of labelled anomalies.
    n : int
        Calibration images.
    share : float in (0, 1)
        Of anomalies among the images to come.
    cost : float
        Of a missed anomaly, in false alarms.
    """
    rates = np.arange(1, n + 1) / (n + 1)
    missed = (anomalous[None, :] > rates[:, None] + 1e-9).mean(1)
    return float(rates[np.argmin((1 - share) * rates + share * cost * missed)])


def threshold(calibration: np.ndarray, rate: float) -> tuple[float, float, str | None]:
    """Score above which an image is called anomalous.

    Parameters
    ----------
    calibration : ndarray of shape (n,), n >= 1
    rate : float in (0, 1)
        Share of normal images that may be called anomalous.

    Returns
    -------
    score : float
        score > threshold exactly when the p-value is at most the effective rate.
    effective_rate : float
        `rate`, or 1 / (n + 1) where n images cannot promise less.
    warning : str or None
        Says so, with the number of normals that would be needed.
    """
    n = len(calibration)
    allowed = math.floor(rate * (n + 1) + 1e-9)
    warning = None
    if allowed < 1:
        needed = math.ceil(1 / rate - 1e-9) - 1
        warning = (
            f"{n} calibration images cannot promise a false-alarm rate of {rate:g}: "
            f"{1 / (n + 1):.2g} is used. At least {needed} would be needed."
        )
    descending = np.sort(calibration)[::-1]
    score = float(descending[max(allowed, 1) - 1])
    return score, max(rate, 1 / (n + 1)), warning
