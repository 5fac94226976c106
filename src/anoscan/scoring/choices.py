"""The available scores, and the ways in which an image gets its latent before it is scored.

This module does not import torch, because ``--help`` reads it and must not wait for torch.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypedDict

from anoscan.core.config import FalseAlarmRate, rate_in_range
from anoscan.core.errors import UsageError


@dataclass(frozen=True)
class Score:
    """A way to combine the terms of an image into one score.

    Parameters
    ----------
    name, summary : str
        The name that ``--score`` takes, and the description that ``--help`` prints.
    weights : dict of str to float
        How much each term counts, by its name. Terms of weight 0 are only shown, as an explanation.
    raw : bool
        Whether the score is its one term, unscaled, and not made by
        `calibration.TermScale.combine`.
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
            "the terms that help detection, in standard deviations of held-out normals, combined "
            "so that the most anomalous one decides",
            {
                "pixel": 0,
                "feature": 0,
                "latent": 0,
                "density": 1,
                "local": 1,
                "prototype": 1,
                "mixture": 3.5,
                "subspace": 1,
                "rotation": 1,
                "backbone_density": 1,
                "backbone_local": 1,
            },
        ),
        Score(
            "pca",
            "the squared residual of the pixels from principal components, a simple baseline",
            {"pca": 1},
            raw=True,
        ),
        Score(
            "nearest",
            "the distance of the pixels from the nearest training images, a simple baseline; "
            "models of patches lack it",
            {"nearest": 1},
            raw=True,
        ),
        Score("paper", "the formula of f-AnoGAN, unscaled, for comparison", {"paper": 1}, raw=True),
        Score("anogan", "the formula of AnoGAN, unscaled, for comparison", {"anogan": 1}, raw=True),
    )
}
DEFAULT_SCORE = "calibrated"
BATCH_SIZE = 64
# What a false-alarm rate of "auto" chooses from: the lowest of these above whose threshold at least
# `FEWEST_ABOVE` calibration images lie. A threshold that is set by fewer depends much on chance.
RATES = (0.01, 0.02, 0.05, 0.1)
FEWEST_ABOVE = 5


def score_named(name: str) -> Score:
    """Return the score of a name.

    Raises
    ------
    UsageError
        When there is no score of that name.
    """
    if name not in SCORES:
        raise UsageError(f"--score must be one of {', '.join(SCORES)}. Got {name!r}.")
    return SCORES[name]


MAP_FORMS = {
    "overlay": "PNG of the image with its map over it",
    "side-by-side": "PNG of the image, the map, and both",
    "npy": "the map as a NumPy array",
    "tiff": "the map as a 32-bit TIFF",
    "mask": "PNG that is white where the map is above the level of regions",
}
DEFAULT_MAP_FORMS = "overlay"

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
    """How an image gets its latent; see `MAPPINGS` and `DISCRIMINATION_LOSSES`.

    Parameters
    ----------
    mapping : {'encoder', 'search', 'refine'}
    discrimination_loss : {'feature', 'fool'}
        The part of a search's loss that is added to the residual of the pixels.
    steps : int >= 1, optional
        The number of steps of a search; by default 500 for 'search' and 50 for 'refine'.
    seed : int
        The seed of the random latent that 'search' starts from.

    Raises
    ------
    UsageError
        For an unknown name, fewer than one step, or an option of a search with 'encoder'.
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
        """Return the inversion of a mapping's name, with its defaults, or the given inversion."""
        return mapping if isinstance(mapping, Inversion) else cls(mapping)

    @property
    def length(self) -> int:
        """Number of steps that the mapping takes; 0 for the encoder."""
        return self.steps or STEPS.get(self.mapping, 0)


ENCODER = Inversion()


@dataclass(frozen=True)
class ScoreRequest:
    """How a model scores images, and what it reports of each.

    Parameters
    ----------
    score : {'calibrated', 'pca', 'nearest', 'paper', 'anogan'}
    inversion : Inversion
    false_alarm_rate : float in (0, 1) or 'auto', optional
        The share of normal images that may be called anomalous. 'auto' chooses it by the number of
        calibration images; see `scoring.calibration.automatic_rate`. By default it is the model's
        own, which is 'auto' unless ``anoscan calibrate`` set another.
    nearest : int
        How many of the most similar training images are reported; the model must have kept them.
    batch_size : int >= 1
        The number of images that are measured in one pass. Scores do not depend on it.

    Raises
    ------
    UsageError
        For an unknown score, or for a rate or a batch size out of range.
    """

    score: str = DEFAULT_SCORE
    inversion: Inversion = ENCODER
    false_alarm_rate: FalseAlarmRate | None = None
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
        """Make a request from the keywords of `Detector.score`, where `mapping` may be a name."""
        return cls(inversion=Inversion.of(mapping), **options)


class HowToScore(TypedDict, total=False):
    """Keywords of `Detector.score` and `Detector.evaluate`; see `ScoreRequest`.

    `mapping` is an `Inversion`, or the name of one with its defaults.
    """

    score: str
    mapping: str | Inversion
    false_alarm_rate: FalseAlarmRate | None
    nearest: int
    batch_size: int


def map_forms(text: str) -> tuple[str, ...]:
    """Read the forms of maps from a list with commas; each form is returned once.

    Raises
    ------
    UsageError
        When the list is empty or names a form that does not exist.
    """
    forms = tuple(dict.fromkeys(part.strip() for part in text.split(",") if part.strip()))
    if not forms or not set(forms) <= set(MAP_FORMS):
        raise UsageError(f"--maps-format must be some of {', '.join(MAP_FORMS)}. Got {text!r}.")
    return forms
