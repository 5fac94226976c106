from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from anoscan.scoring import calibration
from anoscan.scoring.choices import RATES


def test_p_values_count_calibration_scores_at_least_as_high() -> None:
    held_out = np.array([1.0, 2.0, 3.0, 4.0])
    p = calibration.p_values(np.array([0.0, 2.0, 2.5, 4.0, 5.0]), held_out)
    np.testing.assert_allclose(p, [5 / 5, 4 / 5, 3 / 5, 2 / 5, 1 / 5])


@given(
    st.lists(st.integers(0, 30), min_size=1, max_size=60),
    st.lists(st.integers(0, 30), min_size=1, max_size=20),
    st.sampled_from([0.01, 0.05, 0.1, 0.25, 0.5]),
)
def test_an_image_is_above_the_threshold_exactly_when_its_p_value_is_small(
    held_out: list[int], queries: list[int], rate: float
) -> None:
    reference = np.array(held_out, dtype=float)
    scores = np.array(queries, dtype=float)
    level, effective, _ = calibration.threshold(reference, rate)
    p = calibration.p_values(scores, reference)
    np.testing.assert_array_equal(scores > level, p <= effective + 1e-9)


def test_p_values_of_normals_are_valid_and_the_threshold_keeps_its_rate() -> None:
    rng = np.random.default_rng(0)
    alarms = []
    for _ in range(300):
        level, effective, warning = calibration.threshold(rng.normal(size=99), 0.05)
        assert warning is None
        assert effective == 0.05
        alarms.append(np.mean(rng.normal(size=200) > level))
    assert np.mean(alarms) == pytest.approx(0.05, abs=0.006)


def test_too_few_normals_for_a_rate_are_said_with_the_number_needed() -> None:
    level, effective, warning = calibration.threshold(np.arange(50.0), 0.01)
    assert level == 49
    assert effective == pytest.approx(1 / 51)
    assert warning is not None
    assert "At least 99" in warning
    assert calibration.threshold(np.arange(99.0), 0.01)[2] is None


def test_q_values_are_benjamini_hochberg() -> None:
    p = np.array([0.01, 0.02, 0.03, 0.5])
    np.testing.assert_allclose(calibration.q_values(p), [0.04, 0.04, 0.04, 0.5])
    assert calibration.q_values(np.empty(0)).shape == (0,)


def test_terms_of_different_sizes_count_the_same_after_scaling() -> None:
    rng = np.random.default_rng(0)
    terms = np.exp(rng.normal(size=(500, 2)))
    scaled = terms * [1.0, 1e6]
    one = calibration.TermScale.fit(terms, np.ones(terms.shape[1])).combine(terms)
    other = calibration.TermScale.fit(scaled, np.ones(2)).combine(scaled)
    np.testing.assert_allclose(one, other, rtol=1e-6, atol=1e-9)


def test_an_image_is_as_odd_as_its_oddest_term_and_odder_when_two_agree() -> None:
    terms = np.exp(np.random.default_rng(0).normal(size=(1000, 2)))
    scale = calibration.TermScale.fit(terms, np.ones(2))
    one, other, both, none = scale.combine(np.exp([[5.0, 0], [0, 5.0], [5.0, 5.0], [0, 0]]))
    assert one == pytest.approx(other, abs=0.5)
    assert 3.5 < one < 5.5
    assert both > one + 0.5
    assert abs(none) < 0.2


def test_a_term_of_no_weight_does_not_decide() -> None:
    terms = np.exp(np.random.default_rng(0).normal(size=(100, 2)))
    scale = calibration.TermScale.fit(terms, np.array([1.0, 0.0]))
    loud = terms * [1.0, 1e9]
    np.testing.assert_allclose(scale.combine(terms), scale.combine(loud))
    np.testing.assert_allclose(scale.combine(terms), scale.standardise(terms)[:, 0])


def test_a_term_that_never_varies_does_not_make_scores_infinite() -> None:
    terms = np.column_stack([np.ones(20), np.linspace(1, 2, 20)])
    assert np.isfinite(
        calibration.TermScale.fit(terms, np.ones(terms.shape[1])).combine(terms)
    ).all()


@pytest.mark.parametrize(("n", "copies"), [(2, 0), (3, 0), (9, 20), (1, 30)])
def test_few_images_or_copies_do_not_put_the_threshold_out_of_reach(n: int, copies: int) -> None:
    rng = np.random.default_rng(0)
    terms = np.exp(rng.normal(size=(n + copies, 3)))
    terms[n:] = terms[-1]
    scores = calibration.cross_fitted_scores(terms, np.ones(3))
    odd = calibration.TermScale.fit(terms, np.ones(3)).combine(100 * terms.max(0, keepdims=True))
    assert np.abs(scores).max() < 20
    assert (odd > scores).all()
    moments = np.stack([calibration.tile_moments(row[None]) for row in terms])
    tiled = calibration.cross_fitted_tile_scores(terms, moments, np.ones(3))
    assert np.abs(tiled).max() < 20


def test_cross_fitted_scores_leave_their_image_out_of_the_scale() -> None:
    rng = np.random.default_rng(1)
    terms = np.exp(rng.normal(size=(40, 1)))
    terms[7] = 1e9
    inside = calibration.TermScale.fit(terms, np.ones(terms.shape[1])).combine(terms)
    outside = calibration.cross_fitted_scores(terms, np.ones(1))
    assert outside[7] > 2 * inside[7]
    assert outside.shape == (40,)


@pytest.mark.parametrize("n", [1, 2, 3])
def test_very_few_calibration_images_still_give_numbers(n: int) -> None:
    assert np.isfinite(calibration.cross_fitted_scores(np.full((n, 2), 3.0), np.ones(2))).all()


@pytest.mark.parametrize(("n", "rate"), [(60, 0.01), (199, 0.01), (199, 0.05)])
def test_the_uncertainty_of_a_threshold_covers_the_true_rate_as_often_as_it_says(
    n: int, rate: float
) -> None:
    rng = np.random.default_rng(0)
    # Scores are uniform, so the true false-alarm rate of a threshold is 1 minus the threshold.
    levels = [calibration.threshold(rng.uniform(size=n), rate)[0] for _ in range(4000)]
    true = 1 - np.array(levels)
    low, high = calibration.rate_interval(n, rate)
    assert np.mean(true < low) == pytest.approx(0.025, abs=0.008)
    assert np.mean(true > high) == pytest.approx(0.025, abs=0.008)


def test_the_automatic_rate_is_the_lowest_with_five_calibration_images_above_its_threshold() -> (
    None
):
    rng = np.random.default_rng(0)
    for n in (*range(1, 140), *range(290, 310), *range(590, 610), 5000):
        scores, chosen = rng.normal(size=n), calibration.automatic_rate(n)
        above = {
            rate: int((scores > calibration.threshold(scores, rate)[0]).sum()) for rate in RATES
        }
        assert all(above[rate] < 5 for rate in RATES if rate < chosen), n
        assert above[chosen] >= 5 or (chosen == 0.1 and n < 59), n


def test_more_calibration_images_make_a_threshold_more_certain() -> None:
    widths = [np.ptp(calibration.rate_interval(n, 0.05)) for n in (20, 100, 1000, 10_000)]
    assert widths == sorted(widths, reverse=True)
    assert calibration.rate_interval(1, 0.5) == pytest.approx((0.025, 0.975))
