"""Verdicts keep what they promise on real images that no network saw."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import betabinom, binom

from anoscan.detector import Detector
from anoscan.images.files import find
from anoscan.model.judge import Judge, Wanted
from anoscan.scoring import calibration
from benchmarks.calibration import RATES, resplit
from tests.conftest import Digits


def test_alarms_follow_the_beta_binomial_law_and_not_the_binomial() -> None:
    """The threshold comes from few images, so alarms vary more than those of a known one."""
    rng = np.random.default_rng(0)
    n, m, rate, times = 99, 200, 0.05, 3000
    alarms = np.empty(times, dtype=int)
    for index in range(times):
        level, _, _ = calibration.threshold(rng.normal(size=n), rate)
        alarms[index] = (rng.normal(size=m) > level).sum()
    exact = betabinom(m, 5, 95)
    assert alarms.mean() == pytest.approx(exact.mean(), rel=0.05)
    assert alarms.std() == pytest.approx(exact.std(), rel=0.05)
    low, high = exact.ppf((0.025, 0.975))
    assert 0.945 <= np.mean((low <= alarms) & (alarms <= high)) <= 0.975
    low, high = binom(m, rate).ppf((0.025, 0.975))
    assert np.mean((low <= alarms) & (alarms <= high)) < 0.9


def test_random_splits_of_real_normals_keep_rate_uniformity_and_false_discoveries(
    trained: Detector, digits: Digits
) -> None:
    judge = Judge(trained.model, trained.runtime)
    terms = {"0": [], "1": []}  # type: ignore[var-annotated]
    labels = dict(
        line.removeprefix("queries/").split(",")
        for line in digits.labels.read_text(encoding="utf-8").splitlines()[1:]
    )
    for batch in judge.measured(find([digits.queries]), 64, wanted=Wanted(pictures=False)):
        for decoded, row, *_ in batch:
            terms[labels[decoded.image.file.name]].append(row)  # type: ignore[union-attr]
    pool = np.concatenate([trained.model.calibration.terms, np.array(terms["0"])])
    odd = np.array(terms["1"])
    found = resplit(
        trained.model, trained.runtime, pool, odd, strangers=len(odd), splits=20, seed=0
    )
    assert found["calibration_images"] == len(pool) // 2 == 135
    for rate in RATES:
        of_rate = found["rates"][str(rate)]
        assert of_rate["promised"] <= rate
        # Of 20 splits 19 are expected inside a 95 % interval; 16 or fewer once in 400 times.
        assert of_rate["inside"] >= 17, of_rate
        n, m = found["calibration_images"], found["normal_queries"]
        j = round(of_rate["promised"] * (n + 1))
        spread = betabinom(m, j, n + 1 - j).std() / m / np.sqrt(20)
        assert abs(of_rate["realised"] - of_rate["promised"]) < 3.3 * spread
    assert found["uniform"]["p_of_p_values"] > 0.001
    fdr = found["fdr"]
    assert fdr["mean"] - 2 * fdr["standard_error"] <= fdr["level"]
    assert fdr["found"] > 0.3
