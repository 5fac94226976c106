"""Say in words what a threshold promises, and what thresholds of other rates would call."""

from __future__ import annotations

from collections.abc import Sequence

from anoscan.core import results


def described(threshold: results.Threshold) -> str:
    """Return the level of a threshold, its false-alarm rate, and what set the rate."""
    labels = ", set with labels (uses labels)" if threshold.uses_labels else ""
    return (
        f"{threshold.score:.3f}, {rate(threshold)} on {threshold.calibration_images:,} calibration "
        f"images{labels}"
    )


def rate(threshold: results.Threshold) -> str:
    """Return the false-alarm rate of a threshold, and whether it was chosen automatically."""
    chosen = " (chosen automatically)" if threshold.chosen == "auto" else ""
    return f"a false-alarm rate of {percent(threshold.effective_rate)}{chosen}"


def at_other_rates(others: Sequence[results.AtRate]) -> str:
    """Return how many of all scored images are anomalous at each of some rates, at least one."""
    first, *rest = (f"At {percent(at.false_alarm_rate)}: {at.anomalous:,}" for at in others)
    return " ".join([f"{first} anomalous.", *(f"{count}." for count in rest)])


def percent(rate: float) -> str:
    """Return a false-alarm rate in percent, with two digits at most."""
    return f"{100 * rate:.2g} %"
