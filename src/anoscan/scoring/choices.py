"""The scores there are, and the ways in which an image gets its latent before it is scored.

Nothing here imports torch: ``--help`` describes each of them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from anoscan.core.config import rate_in_range
from anoscan.core.errors import UsageError


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
            {
                "pixel": 0,
                "feature": 0,
                "latent": 0,
                "density": 1,
                "local": 1,
                "prototype": 1,
                "subspace": 1,
                "rotation": 1,
            },
        ),
        Score("paper", "f-AnoGAN's formula, unscaled: for comparison", {"paper": 1}, raw=True),
        Score("anogan", "AnoGAN's formula, unscaled: for comparison", {"anogan": 1}, raw=True),
    )
}
DEFAULT_SCORE = "calibrated"
BATCH_SIZE = 64


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


MAP_FORMS = {
    "overlay": "PNG of the image with its map over it",
    "side-by-side": "PNG of the image, the map, and both",
    "npy": "the map as a NumPy array",
    "tiff": "the map as a 32-bit TIFF",
    "mask": "PNG that is white inside the regions",
}
DEFAULT_MAP_FORMS = "overlay,npy"

MAPPINGS = {
    "encoder": "one pass",
    "search": "gradient descent from a random latent, as in AnoGAN; needs no encoder",
    "refine": "a few steps from the encoder's latent, by its loss never worse",
}
DISCRIMINATION_LOSSES = {
    "feature": "the discriminator's features of image and reconstruction are to agree",
    "fool": "the discriminator is to call the reconstruction real",
}
STEPS = {"search": 500, "refine": 50}


@dataclass(frozen=True)
class Inversion:
    """How an image gets the latent of its reconstruction.

    Parameters
    ----------
    mapping : {'encoder', 'search', 'refine'}
    discrimination_loss : {'feature', 'fool'}
        What a search asks of the discriminator, beside the residual in pixels.
    steps : int, optional
        Of a search; 500 for 'search' and 50 for 'refine' by default.
    seed : int
        Of the random latent that 'search' starts from.

    Raises
    ------
    UsageError
        For an unknown name, a number out of range, or a search's option without a search.
    """

    mapping: str = "encoder"
    discrimination_loss: str = "feature"
    steps: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        for option, value, known in (
            ("--mapping", self.mapping, MAPPINGS),
            ("--discrimination-loss", self.discrimination_loss, DISCRIMINATION_LOSSES),
        ):
            if value not in known:
                raise UsageError(f"{option} must be one of {', '.join(known)}. Got {value!r}.")
        if self.steps is not None and self.steps < 1:
            raise UsageError(f"--search-steps must be at least 1. Got {self.steps}.")
        if self.mapping == "encoder" and (self.steps or self.discrimination_loss != "feature"):
            raise UsageError(
                "--search-steps and --discrimination-loss need --mapping search or refine."
            )

    @classmethod
    def of(cls, mapping: str | Inversion) -> Inversion:
        """Inversion of a name, with its defaults; one that is given stays as it is."""
        return mapping if isinstance(mapping, Inversion) else cls(mapping)

    @property
    def length(self) -> int:
        """Steps that are taken."""
        return self.steps or STEPS.get(self.mapping, 0)


ENCODER = Inversion()


@dataclass(frozen=True)
class ScoreRequest:
    """What is asked of a model for every image that it scores.

    Parameters
    ----------
    score : {'calibrated', 'paper', 'anogan'}
    inversion : Inversion
        How an image gets its latent.
    false_alarm_rate : float in (0, 1), optional
        Share of normal images that may be called anomalous; by default the model's own.
    nearest : int
        How many training images most like it are named; the model must have kept them.
    batch_size : int
        Images a pass; scores do not depend on it.

    Raises
    ------
    UsageError
        For an unknown score, or a number out of range.
    """

    score: str = DEFAULT_SCORE
    inversion: Inversion = ENCODER
    false_alarm_rate: float | None = None
    nearest: int = 0
    batch_size: int = BATCH_SIZE

    def __post_init__(self) -> None:
        score_named(self.score)
        if self.false_alarm_rate is not None:
            rate_in_range(self.false_alarm_rate)
        if self.batch_size < 1:
            raise UsageError(f"--batch-size must be at least 1. Got {self.batch_size}.")

    @classmethod
    def of(cls, *, mapping: str | Inversion = ENCODER, **options: Any) -> ScoreRequest:
        """Request from keywords of `Detector.score`, where `mapping` may be a name."""
        return cls(inversion=Inversion.of(mapping), **options)


def map_forms(text: str) -> tuple[str, ...]:
    """Forms of maps from a list with commas, each once.

    Raises
    ------
    UsageError
        When the list is empty or one of them does not exist.
    """
    forms = tuple(dict.fromkeys(part.strip() for part in text.split(",") if part.strip()))
    if not forms or not set(forms) <= set(MAP_FORMS):
        raise UsageError(f"--maps-format must be some of {', '.join(MAP_FORMS)}. Got {text!r}.")
    return forms
