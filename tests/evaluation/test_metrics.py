"""Metrics by hand, against scikit-learn, and by what theory says of their intervals."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score

from anoscan.evaluation import metrics
from anoscan.evaluation.metrics import at_threshold, detection

NORMAL_FIRST = np.array([False, False, True, True])


@pytest.mark.parametrize(
    ("scores", "auroc"),
    [
        ([1, 2, 3, 4], 1.0),
        ([4, 3, 2, 1], 0.0),
        ([1, 3, 2, 4], 0.75),
        ([1, 2, 2, 3], 0.875),
        ([5, 5, 5, 5], 0.5),
    ],
)
def test_auroc_is_the_share_of_pairs_in_order_and_half_for_ties(
    scores: list[float], auroc: float
) -> None:
    assert detection(np.array(scores), NORMAL_FIRST).auroc == pytest.approx(auroc)


def test_rounding_takes_no_average_precision_above_one() -> None:
    # As scikit-learn adds up these, the sum is 1.0000000000000002.
    found = detection(np.arange(21.0), np.arange(21) > 0, resamples=0)
    assert found.average_precision == 1


def test_average_precision_by_hand() -> None:
    found = detection(np.array([1, 3, 2, 4]), NORMAL_FIRST)
    assert found.average_precision == pytest.approx((1 / 1 + 2 / 3) / 2)
    assert found.undefined is None


@st.composite
def labelled(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray]:
    scores = draw(st.lists(st.integers(-20, 20), min_size=2, max_size=30))
    rest = st.lists(st.booleans(), min_size=len(scores) - 2, max_size=len(scores) - 2)
    return np.array(scores, dtype=float), np.array([True, False, *draw(rest)])


@settings(max_examples=50, deadline=None)
@given(labelled())
def test_rising_functions_of_the_scores_change_nothing(case: tuple[np.ndarray, np.ndarray]) -> None:
    scores, anomalous = case
    first = detection(scores, anomalous, resamples=20)
    assert detection(np.exp(scores / 5) * 3 + 1, anomalous, resamples=20) == first


@settings(max_examples=100, deadline=None)
@given(labelled())
def test_the_fast_auroc_of_the_bootstrap_is_that_of_sklearn(
    case: tuple[np.ndarray, np.ndarray],
) -> None:
    scores, anomalous = case
    distinct, ranks = np.unique(scores, return_inverse=True)
    counts = [
        np.bincount(ranks[chosen], minlength=len(distinct)) for chosen in (~anomalous, anomalous)
    ]
    assert metrics._auroc(*counts) == pytest.approx(roc_auc_score(anomalous, scores))


def test_the_bootstrap_draws_what_resampling_images_by_hand_draws() -> None:
    scores, anomalous = sample(30)
    generator = np.random.default_rng(5)
    groups = [np.flatnonzero(~anomalous), np.flatnonzero(anomalous)]
    by_hand = []
    for _ in range(20):
        drawn = np.concatenate([group[generator.integers(30, size=30)] for group in groups])
        by_hand.append(roc_auc_score(anomalous[drawn], scores[drawn]))
    fast = metrics._bootstrap(scores, anomalous, np.random.default_rng(5), 20)
    assert fast == pytest.approx(np.array(by_hand))


def sample(count: int) -> tuple[np.ndarray, np.ndarray]:
    anomalous = np.repeat([False, True], count)
    return np.random.default_rng(0).normal(size=2 * count) + anomalous, anomalous


def interval(count: int, **options: int) -> tuple[float, float, float]:
    found = detection(*sample(count), **options)
    assert found.auroc is not None
    assert found.auroc_ci95 is not None
    return found.auroc_ci95[0], found.auroc, found.auroc_ci95[1]


def test_the_interval_holds_the_estimate_and_shrinks_with_more_images() -> None:
    widths = []
    for count in (10, 100, 1000):
        low, auroc, high = interval(count)
        assert 0 <= low < auroc < high <= 1
        widths.append(high - low)
    assert widths[0] > 2 * widths[1] > 4 * widths[2]


def test_the_interval_is_as_wide_as_theory_says() -> None:
    low, _, high = interval(1000)
    # Normal scores one standard deviation apart: AUROC 0.760, standard error 0.0106 (Hanley).
    assert high - low == pytest.approx(2 * 1.96 * 0.0106, rel=0.15)


def test_the_interval_depends_on_the_seed_alone() -> None:
    assert interval(50, seed=1) == interval(50, seed=1)
    assert interval(50, seed=1) != interval(50, seed=2)


@pytest.mark.parametrize("turned", [False, True])
def test_a_perfect_auroc_of_few_images_is_no_certainty(turned: bool) -> None:
    ends = []
    for normal, anomalous in ((5, 5), (10, 5), (50, 50)):
        labels = np.repeat([False, True], (normal, anomalous))
        scores = np.linspace(0, 1, labels.size) * (-1 if turned else 1)
        found = detection(scores, labels)
        assert found.auroc == (0 if turned else 1)
        assert found.auroc_ci95 is not None
        low, high = sorted(1 - end for end in found.auroc_ci95) if turned else found.auroc_ci95
        assert high == 1
        # The standard error of the lower end, by Hanley and McNeil for exponential scores, with
        # the mean number of images in the place of both.
        of_two = low / (2 - low) - low**2, 2 * low**2 / (1 + low) - low**2
        variance = low * (1 - low) + ((normal + anomalous) / 2 - 1) * sum(of_two)
        assert (1 - low) / math.sqrt(variance / (normal * anomalous)) == pytest.approx(1.96)
        ends.append(low)
    assert ends == sorted(ends)
    assert 0.6 < ends[0] < 0.7 < ends[1] < 0.9 < ends[2] < 0.97


def test_the_interval_of_few_good_images_holds_the_truth() -> None:
    generator = np.random.default_rng(0)
    anomalous = np.repeat([False, True], 5)
    held = 0
    for _ in range(60):  # normal scores this far apart have an AUROC of 0.97
        scores = generator.normal(size=10) + anomalous * 2.66
        interval = detection(scores, anomalous, resamples=50).auroc_ci95
        assert interval is not None
        held += interval[0] <= 0.97 <= interval[1]
    assert held >= 54  # 20 by the bootstrap alone


def test_without_resamples_there_is_no_interval() -> None:
    found = detection(*sample(10), resamples=0)
    assert found.auroc is not None
    assert found.auroc_ci95 is None


@settings(max_examples=50, deadline=None)
@given(labelled())
def test_the_interval_always_holds_the_estimate(case: tuple[np.ndarray, np.ndarray]) -> None:
    found = detection(*case, resamples=1)
    assert found.auroc is not None
    assert found.auroc_ci95 is not None
    assert found.auroc_ci95[0] <= found.auroc <= found.auroc_ci95[1]


@pytest.mark.parametrize(
    ("anomalous", "reason"),
    [
        ([False, False], "only normal images are labelled"),
        ([True], "only anomalous images are labelled"),
        ([], "no labelled image"),
    ],
)
def test_one_class_alone_has_no_auroc_and_a_reason(anomalous: list[bool], reason: str) -> None:
    found = detection(np.arange(len(anomalous)), np.array(anomalous, dtype=bool))
    assert (found.auroc, found.auroc_ci95, found.average_precision) == (None, None, None)
    assert reason in (found.undefined or "")


@pytest.mark.parametrize("scores", [[1.0, np.nan], [np.inf, 1.0], [1.0], [[1.0], [2.0]]])
def test_scores_that_are_not_finite_or_do_not_fit_are_refused(scores: list[float]) -> None:
    for function in (detection, lambda s, a: at_threshold(s, a, 0.0)):
        with pytest.raises(ValueError, match="scores"):
            function(np.array(scores), np.array([True, False]))


def test_decisions_by_hand_with_a_score_on_the_threshold_normal() -> None:
    scores = np.array([0.1, 0.5, 0.6, 0.2, 0.5, 0.9, 0.8])
    anomalous = np.array([False, False, False, True, True, True, True])
    found = at_threshold(scores, anomalous, 0.5)
    assert found.score == 0.5
    assert found.false_alarm_rate == pytest.approx(1 / 3)
    assert found.recall == pytest.approx(2 / 4)
    assert found.precision == pytest.approx(2 / 3)
    assert found.f1 == pytest.approx(4 / 7)


@pytest.mark.parametrize(
    ("scores", "anomalous", "expected"),
    [
        ([0, 0], [False, True], (0.0, 0.0, None, 0.0)),
        ([2, 0], [False, False], (0.5, None, 0.0, None)),
        ([0, 0], [False, False], (0.0, None, None, None)),
        ([2, 2], [True, True], (None, 1.0, 1.0, 1.0)),
        ([0, 0], [True, True], (None, 0.0, None, 0.0)),
        ([], [], (None, None, None, None)),
    ],
)
def test_rates_without_images_to_take_them_of_are_none(
    scores: list[float], anomalous: list[bool], expected: tuple[float | None, ...]
) -> None:
    found = at_threshold(np.array(scores), np.array(anomalous, dtype=bool), 1.0)
    assert (found.false_alarm_rate, found.recall, found.precision, found.f1) == expected
