"""Scales of the terms, p-values and the threshold, from the terms of calibration images.

Calibration images are held-out normals: no network learned from them. With folds, the encoder and
the rotation stage that measured an image did not learn from it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from scipy.special import betaincinv, logsumexp

from anoscan.scoring.choices import FEWEST_ABOVE, RATES

FOLDS = 10
# Least standard deviation of the logarithm of a term. A term that is almost the same for all images
# would otherwise decide the score alone.
LEAST_DEVIATION = 0.005
# The deviation in a fold is at least this share of the deviation of all images. Where the other
# images are copies, or only one image, they do not show how much images differ.
OF_ALL = 0.5


@dataclass(frozen=True)
class TermScale:
    """The scale of each of k terms, and how much the term counts.

    Parameters
    ----------
    mean, deviation : ndarray of shape (k,), float64
        The mean and standard deviation of the logarithm of each term on held-out normals.
    weights : ndarray of shape (k,), float64, >= 0
    """

    mean: np.ndarray
    deviation: np.ndarray
    weights: np.ndarray

    @classmethod
    def fit(cls, terms: np.ndarray, weights: np.ndarray) -> TermScale:
        """Fit the scale to the terms (n, k), positive float64, of n images."""
        logs = _logs(terms)
        deviation = np.maximum(logs.std(0, ddof=min(1, len(logs) - 1)), LEAST_DEVIATION)
        return cls(logs.mean(0), deviation, np.asarray(weights, dtype=np.float64))

    @classmethod
    def of_tiles(cls, moments: np.ndarray, weights: np.ndarray) -> TermScale:
        """Fit the scale to the terms of tiles, from the `tile_moments` (n, 3, k) of n images."""
        count, total, squares = moments.sum(0)
        mean = total / count
        deviation = np.sqrt(np.maximum(squares / count - mean**2, LEAST_DEVIATION**2))
        return cls(mean, deviation, np.asarray(weights, dtype=np.float64))

    def of_some(self, every: TermScale) -> TermScale:
        """Return this scale of some images, with deviations of at least `OF_ALL` of `every`'s."""
        deviation = np.maximum(self.deviation, OF_ALL * every.deviation)
        return TermScale(self.mean, deviation, self.weights)

    def standardise(self, terms: np.ndarray) -> np.ndarray:
        """Return the terms (n, k) in standard deviations from their mean on held-out normals."""
        standard: np.ndarray = (_logs(terms) - self.mean) / self.deviation
        return standard

    def combine(self, terms: np.ndarray) -> np.ndarray:
        """Combine terms (n, k) into anomaly scores (n,).

        The score is the logarithm of the mean exponential of the weighted standardised terms with a
        weight above 0. So the highest of these decides most. A term that finds nothing lowers the
        score little, and two that agree raise it more than one.
        """
        counted = self.weights > 0
        weighted = self.standardise(terms)[:, counted] * self.weights[counted]
        scores: np.ndarray = logsumexp(weighted, axis=1) - np.log(counted.sum())
        return scores


def tile_moments(terms: np.ndarray) -> np.ndarray:
    """Return number, sum and sum of squares (3, k) of the logarithms of tiles' terms (t, k)."""
    logs = _logs(terms)
    return np.stack([np.full(logs.shape[1], float(len(logs))), logs.sum(0), np.square(logs).sum(0)])


def _logs(terms: np.ndarray) -> np.ndarray:
    logs: np.ndarray = np.log(np.maximum(terms, 1e-30))
    return logs


def cross_fitted_scores(terms: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Compute scores (n,) of held-out normals' terms (n, k), each on a scale fitted without it.

    With a scale fitted on all, they would be a little lower than those of queries, on which no
    scale is fitted. Then p-values would be a little too small.
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
    """Compute the scores (n,) of large held-out images, each on the scale of the others' tiles.

    Parameters
    ----------
    terms : ndarray of shape (n, k), positive float64
        The terms of each image's most anomalous tiles (`images.tiles.worst`).
    moments : ndarray of shape (n, 3, k)
        The `tile_moments` of each image.
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
    """Compute conformal p-values (n,): (1 + number of calibration scores >= score) / (n_cal + 1).

    If a normal image is exchangeable with the calibration images, P(p <= t) <= t for every t
    (Bates et al. 2023, "Testing for outliers with conformal p-values", arXiv 2104.08279, eq. 2).
    """
    ascending = np.sort(calibration)
    at_least = len(ascending) - np.searchsorted(ascending, scores, side="left")
    values: np.ndarray = (1 + at_least) / (len(ascending) + 1)
    return values


def q_values(p: np.ndarray) -> np.ndarray:
    """Adjust p-values (n,) by Benjamini and Hochberg: calling all q <= a bounds the FDR by a.

    The q-value of the k-th smallest of n p-values is the least of n / i times the i-th smallest,
    for all i >= k (1995, doi 10.1111/j.2517-6161.1995.tb02031.x).
    """
    # scipy.stats has this too, but is slow to load: one image would take a third longer.
    falling = np.argsort(-p, kind="stable")
    ranks = np.arange(len(p), 0, -1)
    adjusted = np.empty(len(p))
    adjusted[falling] = np.minimum.accumulate(np.minimum(p[falling] * len(p) / ranks, 1))
    return adjusted


def holm(p: np.ndarray) -> np.ndarray:
    """Adjust p-values (n,) by Holm 1979: rejecting all <= a has a chance <= a of any error."""
    order = np.argsort(p)
    factors = np.arange(len(p), 0, -1)
    adjusted = np.empty(len(p))
    adjusted[order] = np.minimum(np.maximum.accumulate(p[order] * factors), 1)
    return adjusted


def rate_for_recall(anomalous: np.ndarray, recall: float) -> float:
    """Return the lowest false-alarm rate at which the share `recall` of anomalies is found.

    `anomalous` (n,), n >= 1, are the p-values of labelled anomalies.
    """
    needed = math.ceil(recall * len(anomalous) - 1e-9)
    return float(np.sort(anomalous)[needed - 1])


def rate_for_cost(anomalous: np.ndarray, n: int, share: float, cost: float) -> float:
    """Return the false-alarm rate of the least expected cost; among equals, the lowest.

    Parameters
    ----------
    anomalous : ndarray of shape (m,)
        The p-values of labelled anomalies.
    n : int
        The number of calibration images.
    share : float in (0, 1)
        The expected share of anomalies among future images.
    cost : float
        The cost of a missed anomaly; a false alarm costs 1.
    """
    rates = np.arange(1, n + 1) / (n + 1)
    missed = (anomalous[None, :] > rates[:, None] + 1e-9).mean(1)
    return float(rates[np.argmin((1 - share) * rates + share * cost * missed)])


def automatic_rate(n: int) -> float:
    """Return the false-alarm rate that "auto" means for n calibration images.

    It is the lowest of `RATES` above whose `threshold` at least `FEWEST_ABOVE` of them lie, or the
    highest of `RATES` where n is too few for any.

    >>> [automatic_rate(n) for n in (599, 598, 299, 119, 59, 20)]
    [0.01, 0.02, 0.02, 0.05, 0.1, 0.1]
    """
    # The threshold is itself the score of the last image allowed, so it has one fewer above it.
    enough = (rate for rate in RATES if _allowed(n, rate) - 1 >= FEWEST_ABOVE)
    return next(enough, RATES[-1])


def threshold(calibration: np.ndarray, rate: float) -> tuple[float, float, str | None]:
    """Return the score above which an image is called anomalous.

    Parameters
    ----------
    calibration : ndarray of shape (n,), n >= 1
        The scores of the calibration images.
    rate : float in (0, 1)
        The share of normal images that may be called anomalous.

    Returns
    -------
    score : float
        The threshold. A score exceeds it exactly when its p-value is at most the effective rate.
    effective_rate : float
        `rate`, or 1 / (n + 1) where n images cannot promise so low a rate.
    warning : str or None
        A sentence that reports a higher effective rate, and how many images `rate` would need.
    """
    n = len(calibration)
    allowed = _allowed(n, rate)
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


def rate_interval(n: int, rate: float) -> tuple[float, float]:
    """Return the central 95 % interval of the true false-alarm rate of a `threshold`.

    The threshold is the j-th highest of n calibration scores. If these are independent draws from
    the scores of normal images, the share of normal images above it follows Beta(j, n + 1 - j),
    the law of the j-th smallest of n uniform numbers. With ties the share is lower.

    >>> low, high = rate_interval(199, 0.01)
    >>> round(low, 4), round(high, 4)
    (0.0012, 0.0277)
    """
    j = max(_allowed(n, rate), 1)
    low, high = betaincinv(j, n + 1 - j, (0.025, 0.975))
    return float(low), float(high)


def excess_p_value(anomalous: int, scored: int, n: int, rate: float) -> float:
    """Return the chance that of `scored` normal images at least `anomalous` exceed a `threshold`.

    The true false-alarm rate follows Beta(j, n + 1 - j), as in `rate_interval`. So the number of
    normal images above the threshold has a Beta-binomial distribution. The p-value is exact for
    independent images, and too large with ties among scores.

    >>> round(excess_p_value(5, 100, 199, 0.01), 4)
    0.0171
    >>> excess_p_value(0, 100, 199, 0.01)
    1.0
    """
    from scipy.stats import betabinom  # slow to load, and rarely needed

    j = max(_allowed(n, rate), 1)
    chance = betabinom.sf(anomalous - 1, scored, j, n + 1 - j)
    return float(np.clip(chance, 0, 1))


def _allowed(n: int, rate: float) -> int:
    """Return how many of n calibration images may be called anomalous."""
    return math.floor(rate * (n + 1) + 1e-9)
