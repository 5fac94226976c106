"""Say whether the last runs of a history differ from what was promised, and from earlier runs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np
from scipy.stats import mannwhitneyu

from anoscan.core.results import PastRun, TrendCheck, TrendReport
from anoscan.report import history
from anoscan.scoring import calibration

Verdict = Literal["steady", "drift", "unknown"]
RECENT = 7  # runs that are compared with earlier ones, by default
FEWEST = 5  # earlier runs: with fewer, no difference could be certain
CERTAIN = 0.01  # a check has drifted when its adjusted p-value is below this


def report(path: Path, last: int = RECENT) -> TrendReport:
    """Read a history, and compare its `last` runs with the promised rate and with earlier runs.

    Only runs of the same model and threshold as the last one are compared, and only those with
    images. Their alarms are compared with the promised rate by the exact tail of a Beta-binomial
    distribution (`calibration.excess_p_value`). Shares of alarms and medians of scores are compared
    with those of earlier runs by a two-sided Mann-Whitney test each. The p-values are adjusted for
    the number of tests (Holm 1979).

    Raises
    ------
    InputError
        When the file cannot be read, or is no history.
    """
    runs = history.read(path)
    like = [run for run in runs if run.scored and _same(run, runs[-1])]
    recent, earlier = like[-last:], like[:-last]
    checks = _checks(recent, earlier) if recent else ()
    verdict = _verdict(checks)
    return TrendReport(
        history=path.as_posix(),
        verdict=verdict,
        message=f"{verdict.capitalize()}: {_sentence(recent, earlier, checks)}.",
        recent=len(recent),
        earlier=len(earlier),
        checks=checks,
        runs=runs,
    )


def _same(run: PastRun, other: PastRun) -> bool:
    return (run.sha256, run.threshold) == (other.sha256, other.threshold)


def _verdict(checks: Sequence[TrendCheck]) -> Verdict:
    """Decide by earlier runs where there are enough, else by the promised rate.

    A steady share of true anomalies is above the promised rate all the time, and is no drift.
    """
    by_rate, by_runs = checks[:1], [check for check in checks[1:] if check.p_value is not None]
    if any(check.drifted for check in by_runs or by_rate):
        return "drift"
    return "steady" if by_runs else "unknown"


def _checks(recent: Sequence[PastRun], earlier: Sequence[PastRun]) -> tuple[TrendCheck, ...]:
    found, scored = sum(run.anomalous for run in recent), sum(run.scored for run in recent)
    n, rate = recent[-1].calibration_images, recent[-1].false_alarm_rate
    tests: dict[str, tuple[float, float | None, float | None]] = {
        "alarms, by the promised rate": (
            found / scored,
            rate,
            calibration.excess_p_value(found, scored, n, rate),
        )
    }
    values = {"alarms": [_shares(recent), _shares(earlier)]}
    values["scores"] = [_medians(recent), _medians(earlier)]
    for name, (now, before) in values.items():
        enough = len(before) >= FEWEST
        p = _difference(now, before) if enough else None
        reference = float(np.median(before)) if len(before) else None
        tests[f"{name}, by earlier runs"] = (float(np.median(now)), reference, p)
    known = [p for _, _, p in tests.values() if p is not None]
    adjusted = iter(calibration.holm(np.array(known)).tolist())
    return tuple(
        TrendCheck(
            name=name,
            recent=now,
            reference=reference,
            p_value=p,
            adjusted_p_value=(after := None if p is None else next(adjusted)),
            drifted=after is not None and after < CERTAIN,
        )
        for name, (now, reference, p) in tests.items()
    )


def _difference(now: np.ndarray, before: np.ndarray) -> float:
    """Return the p-value of a two-sided Mann-Whitney test."""
    if len(np.unique(np.concatenate([now, before]))) == 1:  # no night has an alarm, for example
        return 1.0
    return float(mannwhitneyu(now, before).pvalue)


def _shares(runs: Sequence[PastRun]) -> np.ndarray:
    return np.array([run.anomalous / run.scored for run in runs])


def _medians(runs: Sequence[PastRun]) -> np.ndarray:
    return np.array([run.score_median for run in runs], dtype=np.float64)


def _sentence(
    recent: Sequence[PastRun], earlier: Sequence[PastRun], checks: Sequence[TrendCheck]
) -> str:
    """Say in one sentence whether alarms or scores drift."""
    if not recent:
        return "no run of the last model has scored an image"
    promised, alarms, scores = checks
    found, scored = sum(run.anomalous for run in recent), sum(run.scored for run in recent)
    last = f"the last {len(recent)} runs" if len(recent) > 1 else "the last run"
    counted = (
        f"{found:,} of {scored:,} images in {last} are anomalous ({100 * found / scored:.2g} %), "
        f"{'more than' if promised.drifted else 'no more than'} a false-alarm rate of "
        f"{100 * recent[-1].false_alarm_rate:.2g} % explains{_p(promised)}"
    )
    if scores.p_value is None:
        few = f"there {'is' if len(earlier) == 1 else 'are'} {len(earlier)}"
        return f"{counted}; to compare them, {FEWEST} earlier runs are needed, and {few}"
    compared = {"their share": alarms, "their median score": scores}
    ends = " and ".join(f"{what} {_differs(check)}" for what, check in compared.items())
    return f"{counted}; compared with {len(earlier)} earlier runs, {ends}"


def _differs(check: TrendCheck) -> str:
    if not check.drifted:
        return f"has not changed{_p(check)}"
    higher = (check.recent or 0) > (check.reference or 0)
    return f"has {'risen' if higher else 'fallen'}{_p(check)}"


def _p(check: TrendCheck) -> str:
    p = check.adjusted_p_value or 0
    return f" (p = {p:.2g})" if p >= 1e-4 else " (p < 0.0001)"
