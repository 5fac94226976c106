"""Turn the raw terms of images into scores, on the scales of the calibration images."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cached_property

import numpy as np

from anoscan.core import registry
from anoscan.core.errors import ModelError
from anoscan.model.model import Calibration
from anoscan.scoring.calibration import (
    TermScale,
    cross_fitted_scores,
    cross_fitted_tile_scores,
)
from anoscan.scoring.choices import DEFAULT_SCORE, SCORES, score_named


class Scorer:
    """Turns raw terms (n, k) into scores (n,); a higher score is more anomalous.

    Parameters
    ----------
    columns : iterable of str
        The names of all measured terms, in the order of their columns.
    calibration : Calibration
    """

    def __init__(self, columns: Iterable[str], calibration: Calibration) -> None:
        self.columns, self._calibration = tuple(columns), calibration

    def terms(self, score: str) -> tuple[str, ...]:
        """Return the names of the terms that a score shows, of those that the model has."""
        return tuple(name for name in score_named(score).weights if name in self.columns)

    def weights(self, score: str) -> dict[str, float]:
        """Return how much each term of a score counts, by name; 0 for terms that are only shown."""
        return dict(zip(self.terms(score), self._weights(score).tolist(), strict=True))

    def scale(self, score: str) -> TermScale:
        """Return the scales and weights of the `terms` of a score that combines its terms."""
        return self._scales[score_named(score).name]

    def needs_latent(self, score: str) -> bool:
        """Return whether a score counts a term that depends on z or G(z)."""
        weights = zip(self.terms(score), self._weights(score), strict=True)
        return any(w > 0 and registry.load("terms", t).needs_latent for t, w in weights)

    def scores(self, terms: np.ndarray, score: str) -> np.ndarray:
        """Return the scores (n,) of images from their raw terms (n, k) of all columns."""
        how = score_named(score)
        chosen = terms[:, self._places(how.name)]
        return chosen[:, 0] if how.raw else self._scales[how.name].combine(chosen)

    def calibration_scores(self, score: str) -> np.ndarray:
        """Return the scores (n,) of calibration images, each on scales fitted without it.

        Raises
        ------
        ModelError
            When the model has none of the terms that the score counts.
        """
        if not self.terms(score):
            missing = " or ".join(score_named(score).weights)
            raise ModelError(
                f"--score {score}: this model has no term {missing}.",
                hint="Use another score. Models of patches have no nearest, and models without a "
                "GAN have no paper and no anogan. A model of an older anoscan has the term when it "
                "is trained again.",
            )
        return self._calibration_scores[score_named(score).name]

    def among_themselves(self, terms: np.ndarray) -> np.ndarray:
        """Return default scores (n,) of raw terms (n, k), each on scales of the other images."""
        places, weights = self._places(DEFAULT_SCORE), self._weights(DEFAULT_SCORE)
        return cross_fitted_scores(terms[:, places], weights)

    def shown(self, terms: np.ndarray, score: str) -> np.ndarray:
        """Return the `terms` of a score (n, t): standardised, but raw for a `Score.raw`."""
        how = score_named(score)
        values: np.ndarray = terms[:, self._places(how.name)]
        return values if how.raw else self._scales[how.name].standardise(values)

    def percentiles(self, terms: np.ndarray, score: str) -> np.ndarray:
        """Return the percentage of calibration images with less of each term, (n, t)."""
        columns = [
            np.searchsorted(self._ascending[:, place], terms[:, place], side="left")
            for place in self._places(score)
        ]
        found: np.ndarray = 100 * np.stack(columns, 1) / len(self._ascending)
        return found

    @cached_property
    def _ascending(self) -> np.ndarray:
        return np.sort(self._calibration.terms, axis=0)

    def _places(self, score: str) -> list[int]:
        return [self.columns.index(name) for name in self.terms(score)]

    def _weights(self, score: str) -> np.ndarray:
        """Return how much each term counts: the score's weight times that of the patch test."""
        chosen = score_named(score).weights
        given = np.array([chosen[name] for name in self.terms(score)], dtype=np.float64)
        tested: np.ndarray = self._calibration.weights[self._places(score)] * given
        # Where no term passed the patch test, all that the score counts have the same weight.
        return tested if tested.any() else np.minimum(given, 1)

    @cached_property
    def _scales(self) -> dict[str, TermScale]:
        terms, tiles = self._calibration.terms, self._calibration.tiles
        found = {}
        for name in filter(self.terms, SCORES):
            places, weights = self._places(name), self._weights(name)
            found[name] = (
                TermScale.fit(terms[:, places], weights)
                if tiles is None
                else TermScale.of_tiles(tiles[:, :, places], weights)
            )
        return found

    @cached_property
    def _calibration_scores(self) -> dict[str, np.ndarray]:
        found = {}
        for name in filter(self.terms, SCORES):
            places, weights = self._places(name), self._weights(name)
            terms, tiles = self._calibration.terms[:, places], self._calibration.tiles
            crossed = (
                cross_fitted_scores(terms, weights)
                if tiles is None
                else cross_fitted_tile_scores(terms, tiles[:, :, places], weights)
            )
            found[name] = terms[:, 0] if SCORES[name].raw else crossed
        return found
