"""Training health in plain words: what was found of a run, and what follows from it."""

from __future__ import annotations

from dataclasses import dataclass

from anoscan.results import Health, HealthCheck, HealthReport

_RANK: dict[Health, int] = {"ok": 0, "warn": 1, "fail": 2}


@dataclass(frozen=True)
class Findings:
    """What the checks look at.

    Parameters
    ----------
    trained, held_out : int
        Numbers of images.
    rollbacks : int
        How often training went back because losses were not finite.
    reconstruction : float
        Mean squared residual of held-out normals, relative to that of the mean image.
    diversity : float
        Pixel variance of generated images, relative to that of the training images.
    of : {'images', 'patches'}
        What `trained` counts.
    """

    trained: int
    held_out: int
    rollbacks: int
    reconstruction: float
    diversity: float
    of: str = "images"


def examine(findings: Findings) -> HealthReport:
    """All checks, and the worst of their verdicts."""
    checks = (
        _images(findings.trained, findings.of),
        _calibration(findings.held_out),
        _stability(findings.rollbacks),
        _reconstruction(findings.reconstruction),
        _diversity(findings.diversity),
    )
    return HealthReport(verdict=worst(checks), checks=checks)


def worst(checks: tuple[HealthCheck, ...]) -> Health:
    """Worst verdict of some checks; 'ok' of none."""
    return max((check.verdict for check in checks), key=_RANK.__getitem__, default="ok")


def _check(name: str, verdict: Health, value: float, message: str) -> HealthCheck:
    return HealthCheck(name=name, verdict=verdict, value=float(value), message=message)


def _images(n: int, of: str) -> HealthCheck:
    if n < 50:
        advice = f"{n} training {of}: far too few for a GAN; trust the PCA baseline more."
        return _check("images", "fail", n, advice)
    if n < 500:
        advice = f"{n} training {of} are few: the networks may memorise them. 1,000 are better."
        return _check("images", "warn", n, advice)
    return _check("images", "ok", n, f"{n:,} training {of}.")


def _calibration(n: int) -> HealthCheck:
    smallest = 1 / (n + 1)
    if n < 99:
        advice = (
            f"{n} held-out normals: false-alarm rates below {smallest:.2g} cannot be promised "
            f"(1 % needs 99)."
        )
        return _check("calibration", "warn", n, advice)
    return _check("calibration", "ok", n, f"{n:,} held-out normals set the threshold.")


def _stability(rollbacks: int) -> HealthCheck:
    if rollbacks:
        advice = "Losses were not finite once: training went back and on at a lower learning rate."
        return _check("stability", "warn", rollbacks, advice)
    return _check("stability", "ok", 0, "All losses stayed finite.")


def _reconstruction(ratio: float) -> HealthCheck:
    facts = f"Reconstructions of held-out normals miss {ratio:.0%} of what the mean image misses"
    if not ratio < 1:
        advice = f"{facts}: pictures are worthless. Train longer (--images-shown)."
        return _check("reconstruction", "fail", ratio, advice)
    if ratio > 0.9:
        advice = f"{facts}: pictures say little. Train longer (--images-shown)."
        return _check("reconstruction", "warn", ratio, advice)
    return _check("reconstruction", "ok", ratio, f"{facts}.")


def _diversity(ratio: float) -> HealthCheck:
    facts = f"Generated images vary {ratio:.0%} as much as the training images"
    if not ratio > 0.1:
        advice = f"{facts}: mode collapse, or too short a training. Raise --images-shown first."
        return _check("diversity", "fail", ratio, advice)
    if ratio < 0.4:
        advice = f"{facts}: the generator covers part of what is normal. Train longer."
        return _check("diversity", "warn", ratio, advice)
    return _check("diversity", "ok", ratio, f"{facts}.")
