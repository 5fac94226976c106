"""The scores there are: ways to make one number of an image's terms.

Nothing here imports torch: ``--help`` describes each score.
"""

from __future__ import annotations

from dataclasses import dataclass

from anoscan.errors import UsageError


@dataclass(frozen=True)
class Score:
    """A way to make one number of the terms.

    Parameters
    ----------
    weights : dict from the name of a term to how much it counts
        Terms of weight 0 are only shown: they explain and do not decide.
    raw : bool
        Whether the one term is taken as it is; otherwise see `calibration.Scale.combine`.
    """

    name: str
    summary: str
    weights: dict[str, float]
    raw: bool = False


SCORES = {
    score.name: score
    for score in (
        Score(
            "calibrated",
            "the terms that pay, in standard deviations of held-out normals, as odd as the oddest",
            {"pixel": 0, "feature": 0, "latent": 0, "density": 1, "local": 1, "rotation": 1},
        ),
        Score("paper", "f-AnoGAN's formula, unscaled: for comparison", {"paper": 1}, raw=True),
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
