"""A model's word on single images: terms, score, p-value, verdict, regions, picture."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch

from anoscan import calibration, images, pictures, registry, scoring
from anoscan.config import rate_in_range
from anoscan.errors import ModelError, UsageError
from anoscan.images import Decoded, ImageFile
from anoscan.model import Model
from anoscan.results import ImageScore, Region, Skipped, Threshold
from anoscan.runtime import Runtime
from anoscan.scores import ENCODER, SCORES, Inversion, Score, score_named


@dataclass(frozen=True)
class Levels:
    """What a score and a false-alarm rate decide: levels for the image and for regions in it."""

    score: str
    image: float
    region: float


class Judge:
    """Judges images one by one, whatever company they come in.

    Parameters
    ----------
    model : Model
    runtime : Runtime
        Where to compute, and how many threads decode.
    """

    def __init__(self, model: Model, runtime: Runtime) -> None:
        self.model, self.runtime = model, runtime
        self._rule = model.rule

    def terms(self, score: str) -> tuple[str, ...]:
        """Names of the terms that a score shows, of those the model has.

        Raises
        ------
        ModelError
            When the model has no term that the score could be made of.
        """
        chosen = score_named(score)
        if not self._has(chosen):
            raise ModelError(
                f"this model was trained before there was --score {score}.",
                hint="Train it again, or use --score calibrated.",
            )
        return tuple(name for name in chosen.weights if name in self.model.fitted)

    def _has(self, score: Score) -> bool:
        return any(name in self.model.fitted for name, weight in score.weights.items() if weight)

    def check(self, how: Inversion) -> None:
        """Refuse a search that this model cannot do.

        Raises
        ------
        UsageError
            When it asks for a realness that the discriminator no longer gives.
        """
        trained_on = "rotation" in self.model.fitted or self.model.config.mapping == "bigan"
        if how.discrimination_loss == "fool" and trained_on:
            raise UsageError(
                "--discrimination-loss fool needs the discriminator as the game left it, and this "
                "model's has learned something else since, or judged pairs.",
                hint="Train with --rotation-images-shown 0 and not with --mapping bigan, or use "
                "--discrimination-loss feature.",
            )

    def reservation(self, score: str, how: Inversion) -> str | None:
        """What keeps the held-out normals from being a yardstick of images mapped like this."""
        weights = zip(self.terms(score), self._weights(score), strict=True)
        concerned = any(w > 0 and registry.load("terms", t).needs_latent for t, w in weights)
        if how.mapping == "encoder" or not concerned:
            return None
        return (
            "the threshold and the p-values of a score made of reconstructions were set with the "
            f"encoder mapping: with --mapping {how.mapping} they are no promise."
        )

    def threshold(self, false_alarm_rate: float, score: str, how: Inversion = ENCODER) -> Threshold:
        """Score above which an image is called anomalous at a false-alarm rate."""
        self.terms(score)
        self.check(how)
        scores = self._calibration_scores[score_named(score).name]
        level, effective, warning = calibration.threshold(scores, rate_in_range(false_alarm_rate))
        return Threshold(
            score=level,
            false_alarm_rate=false_alarm_rate,
            effective_rate=effective,
            calibration_images=len(scores),
            warning=" ".join(filter(None, (warning, self.reservation(score, how)))) or None,
        )

    def levels(self, false_alarm_rate: float, score: str) -> Levels:
        """Levels that images and regions must exceed to be called anomalous.

        That for regions is the residual that the worst place of a normal image exceeds at the
        false-alarm rate.
        """
        peaks = self.model.yardstick.region_peaks
        region = calibration.threshold(peaks, rate_in_range(false_alarm_rate))[0]
        return Levels(score, self.threshold(false_alarm_rate, score).score, region)

    def measured(
        self, files: Iterable[ImageFile], batch_size: int, how: Inversion = ENCODER
    ) -> Iterator[list[tuple[Decoded | Skipped, np.ndarray, np.ndarray, np.ndarray]]]:
        """Batches of (decoded, terms (k,), reconstruction, residual), in input order."""
        self.check(how)
        waiting: list[Decoded | Skipped] = []
        readable = 0
        for outcome in images.stream(files, self._rule, workers=self.runtime.workers):
            waiting.append(outcome)
            readable += isinstance(outcome, Decoded)
            if readable == batch_size or len(waiting) == 4 * batch_size:
                yield self._measure(waiting, how)
                waiting, readable = [], 0
        if waiting:
            yield self._measure(waiting, how)

    def _measure(
        self, outcomes: list[Decoded | Skipped], how: Inversion
    ) -> list[tuple[Decoded | Skipped, np.ndarray, np.ndarray, np.ndarray]]:
        empty = np.empty(0)
        pixels = [outcome.pixels for outcome in outcomes if isinstance(outcome, Decoded)]
        if not pixels:
            return [(outcome, empty, empty, empty) for outcome in outcomes]
        x = torch.from_numpy(np.stack(pixels)).to(self.runtime.device)
        measured = scoring.measure(self.model.networks, self.model.fitted, x, how)
        found = iter(zip(measured.terms, measured.x_hat, measured.residual, strict=True))
        return [
            (outcome, *(next(found) if isinstance(outcome, Decoded) else (empty, empty, empty)))
            for outcome in outcomes
        ]

    def judge(
        self, decoded: Decoded, terms: np.ndarray, residual: np.ndarray, levels: Levels
    ) -> ImageScore:
        """Result of one image from its raw terms (k,) and residual (s, s); no rank yet."""
        value = float(self.scores(terms[None], levels.score)[0])
        reference = self._calibration_scores[levels.score]
        return ImageScore(
            rank=None,
            path=decoded.image.path,
            score=value,
            p_value=float(calibration.p_values(np.array([value]), reference)[0]),
            q_value=None,
            verdict="anomalous" if value > levels.image else "normal",
            terms=self._named_terms(terms, score_named(levels.score)),
            regions=_regions(decoded, residual, levels.region),
            residual=None,
        )

    def _named_terms(self, terms: np.ndarray, how: Score) -> dict[str, float]:
        values = terms[self._columns(how.name)]
        if not how.raw:
            values = self._scales[how.name].standardise(values[None])[0]
        return dict(zip(self.terms(how.name), values.tolist(), strict=True))

    def draw(self, decoded: Decoded, x_hat: np.ndarray, residual: np.ndarray, folder: Path) -> str:
        """Write query | reconstruction | residual under `folder`; returns the path."""
        target = pictures.output_path(folder, decoded.image.inside)
        scale = self.model.yardstick.picture_scale
        pictures.save_png(pictures.panel(decoded.pixels, x_hat, residual, scale), target)
        return target.as_posix()

    def scores(self, terms: np.ndarray, score: str) -> np.ndarray:
        """Scores (n,) of raw terms (n, k) of all columns."""
        how = score_named(score)
        chosen = terms[:, self._columns(how.name)]
        return chosen[:, 0] if how.raw else self._scales[how.name].combine(chosen)

    def _columns(self, score: str) -> list[int]:
        present = list(self.model.fitted)
        return [present.index(name) for name in self.terms(score)]

    def _weights(self, score: str) -> np.ndarray:
        """How much each column counts: what the score gives it, as far as it can be trusted."""
        chosen = score_named(score).weights
        given = np.array([chosen[name] for name in self.terms(score)], dtype=np.float64)
        trusted: np.ndarray = self.model.yardstick.trust[self._columns(score)] * given
        # Where nothing can be trusted, nothing can be preferred.
        return trusted if trusted.any() else given

    @cached_property
    def _scales(self) -> dict[str, calibration.Scale]:
        terms = self.model.yardstick.terms
        return {
            name: calibration.Scale.fit(terms[:, self._columns(name)], self._weights(name))
            for name, score in SCORES.items()
            if self._has(score)
        }

    @cached_property
    def _calibration_scores(self) -> dict[str, np.ndarray]:
        found = {}
        for name, score in SCORES.items():
            if not self._has(score):
                continue
            terms = self.model.yardstick.terms[:, self._columns(name)]
            crossed = calibration.cross_fitted_scores(terms, self._weights(name))
            found[name] = terms[:, 0] if score.raw else crossed
        return found


def _regions(decoded: Decoded, residual: np.ndarray, level: float) -> tuple[Region, ...]:
    side = len(residual)
    found = []
    for left, top, right, bottom, peak in scoring.regions(scoring.smooth(residual[None])[0], level):
        x, y, w, h = images.stored_box(
            left / side,
            top / side,
            right / side,
            bottom / side,
            width=decoded.width,
            height=decoded.height,
            orientation=decoded.orientation,
        )
        found.append(Region(x=x, y=y, width=w, height=h, score=peak))
    return tuple(found)
