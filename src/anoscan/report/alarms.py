"""Decide by rules whether a whole run is an alarm: ``anoscan score --fail-if``."""

from __future__ import annotations

import re
from array import array
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Self

import numpy as np

from anoscan.core.errors import UsageError
from anoscan.core.results import Alarm, ImageScore, Threshold
from anoscan.scoring import calibration

CERTAIN = 0.01  # `excess` holds when its p-value is below this
_RULE = re.compile(r"(count|share|q)([<>])(\d+(?:\.\d*)?|\.\d+)(%?)")
_SIGNS = {"count": ">", "share": ">", "q": "<"}
_KNOWN = "count>N, share>X, q<X or excess"


@dataclass
class Tally:
    """Counts, scores and p-values of a run, collected image by image in 16 bytes each."""

    threshold: Threshold
    anomalous: int = 0
    skipped: int = 0
    _scores: array[float] = field(default_factory=lambda: array("d"))
    _p_values: array[float] = field(default_factory=lambda: array("d"))

    def add(self, image: ImageScore) -> None:
        """Count an image."""
        self.anomalous += image.verdict == "anomalous"
        self._scores.append(image.score)
        self._p_values.append(image.p_value)

    @classmethod
    def of(cls, threshold: Threshold, images: Sequence[ImageScore], skipped: int) -> Self:
        """Return the tally of images that were all scored."""
        tally = cls(threshold, skipped=skipped)
        for image in images:
            tally.add(image)
        return tally

    @property
    def scored(self) -> int:
        """Number of images that were scored."""
        return len(self._scores)

    @property
    def scores(self) -> np.ndarray:
        """Scores (n,) of the images."""
        return np.array(self._scores)

    @property
    def p_values(self) -> np.ndarray:
        """P-values (n,) of the images."""
        return np.array(self._p_values)


@dataclass(frozen=True)
class Rule:
    """A rule about a run; `limit` is the number in it, which ``excess`` does not have."""

    text: str
    kind: str
    limit: float = 0.0

    @classmethod
    def of(cls, text: str) -> Rule:
        """Read a rule: ``count>3``, ``share>0.05`` or ``share>5%``, ``q<0.05``, or ``excess``.

        Raises
        ------
        UsageError
            When it is none of these, or its number is out of range.
        """
        plain = "".join(text.split())
        if plain == "excess":
            return cls(plain, plain)
        found = _RULE.fullmatch(plain)
        if found is None or _SIGNS[found[1]] != found[2]:
            # Without quotes a shell takes ">3" away, and writes to a file of that name.
            quotes = "Put the rule in quotes, or the shell takes > and < for itself."
            raise UsageError(f"--fail-if must be {_KNOWN}. Got {text!r}.", hint=quotes)
        kind, limit = found[1], float(found[3]) / (100 if found[4] else 1)
        if kind == "count" and (found[4] or not limit.is_integer()):
            raise UsageError(f"--fail-if count>N needs a whole number. Got {text!r}.")
        if kind != "count" and not (limit <= 1 if kind == "share" else 0 < limit <= 1):
            raise UsageError(f"--fail-if {kind} needs a share of at most 1, or 100%. Got {text!r}.")
        return cls(plain, kind, limit)

    def judge(self, run: Tally) -> Alarm:
        """Say whether the rule holds for a run, and with which numbers."""
        holds, detail = getattr(self, f"_{self.kind}")(run)
        return Alarm(rule=self.text, holds=bool(holds), detail=detail)

    def _count(self, run: Tally) -> tuple[bool, str]:
        return run.anomalous > self.limit, _found(run)

    def _share(self, run: Tally) -> tuple[bool, str]:
        if not run.scored:
            return False, _found(run)
        share = run.anomalous / run.scored
        return share > self.limit, f"{_found(run)}, {100 * share:.3g} %"

    def _q(self, run: Tally) -> tuple[bool, str]:
        if not run.scored:
            return False, _found(run)
        q_values = calibration.q_values(run.p_values)
        below = int((q_values < self.limit).sum())
        return below > 0, (
            f"{below:,} of {_images(run.scored)} {'has' if below == 1 else 'have'} a q-value below "
            f"{self.limit:g}; the lowest is {q_values.min():.3g}"
        )

    def _excess(self, run: Tally) -> tuple[bool, str]:
        n, rate = run.threshold.calibration_images, run.threshold.effective_rate
        p = calibration.excess_p_value(run.anomalous, run.scored, n, rate)
        return p < CERTAIN, (
            f"{_found(run)}; about {rate * run.scored:.1f} are expected of normal images at a "
            f"false-alarm rate of {100 * rate:.2g} %, and so many with p = {p:.2g}"
        )


def _found(run: Tally) -> str:
    verb = "is" if run.anomalous == 1 else "are"
    return f"{run.anomalous:,} of {_images(run.scored)} {verb} anomalous"


def _images(n: int) -> str:
    return f"{n:,} image{'s' * (n != 1)}"
