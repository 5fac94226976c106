"""The scores there are: ways to make one number of an image's terms.

Nothing here imports torch: ``--help`` describes each score.
"""

from __future__ import annotations

from dataclasses import dataclass

from anoscan.errors import UsageError


@dataclass(frozen=True)
class Score:
    """A way to make one number of the terms: `terms`, standardised and averaged unless `raw`."""

    name: str
    summary: str
    terms: tuple[str, ...]
    raw: bool = False


SCORES = {
    score.name: score
    for score in (
        Score(
            "calibrated",
            "mean of the terms, each in standard deviations of held-out normals",
            ("pixel", "feature", "latent", "density", "local", "rotation"),
        ),
        Score("paper", "f-AnoGAN's formula, unscaled: for comparison", ("paper",), raw=True),
    )
}
DEFAULT_SCORE = "calibrated"


def score_named(name: str) -> Score:
    """Score of a name.

    Raises
    ------
    UsageError
        When there is none.
    """
    if name not in SCORES:
        raise UsageError(f"--score must be one of {', '.join(SCORES)}. Got {name!r}.")
    return SCORES[name]
