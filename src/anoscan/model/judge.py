"""A model judges single images: terms, score, p-value, verdict and regions."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch

from anoscan.core.arrays import Floats
from anoscan.core.config import rate_in_range
from anoscan.core.errors import InputError, ModelError, UsageError
from anoscan.core.results import ImageScore, Neighbour, Region, Search, Skipped, Threshold
from anoscan.core.runtime import Runtime
from anoscan.images.canvas import Canvas
from anoscan.images.decode import Decoded, decode_all
from anoscan.images.files import ImageFile
from anoscan.images.roi import Roi
from anoscan.images.tiles import Grid, block_side, worst
from anoscan.model import regions
from anoscan.model.model import Model
from anoscan.model.regions import Finder
from anoscan.model.scorer import Scorer
from anoscan.scoring import calibration
from anoscan.scoring.baselines import NAMES
from anoscan.scoring.choices import DEFAULT_SCORE, ENCODER, Inversion, ScoreRequest
from anoscan.scoring.neighbours import latent
from anoscan.scoring.tiled import OnRows, OnTiles, measure_tiled, views

_NOTHING = np.empty(0)


class MeasuredImage(NamedTuple):
    """What was measured of one image, empty for one that was skipped.

    Parameters
    ----------
    decoded : Decoded or Skipped
    terms : ndarray of shape (k,)
        Raw.
    x_hat : ndarray of shape (c, h, w)
        Reconstruction.
    residual : ndarray of shape (h, w)
    anomaly_map : ndarray of shape (h, w)
        Map, as fine as there is use for.
    finder : Finder or None
        Of an image whose map is coarser than itself: what found the regions in the finer one.
    """

    decoded: Decoded | Skipped
    terms: np.ndarray = _NOTHING
    x_hat: np.ndarray = _NOTHING
    residual: np.ndarray = _NOTHING
    anomaly_map: np.ndarray = _NOTHING
    finder: Finder | None = None


@dataclass(frozen=True)
class Levels:
    """What a score and a false-alarm rate decide: levels for the image and for regions in it.

    `nearest` is how many training images are to be named beside it.
    """

    score: str
    image: float
    region: float
    nearest: int = 0


RowsFor = Callable[[Canvas], OnRows | None]


@dataclass(frozen=True)
class Wanted:
    """What is wanted of images beside their terms.

    Parameters
    ----------
    pictures : bool
        Reconstruction and residual; those of small images are there anyway.
    mapped : bool
        Anomaly maps.
    level : float, optional
        Regions of large images are found above it, in every row of their maps.
    rows_for : callable, optional
        From the canvas of a large image to what takes the rows of its map; None for no taker.
    on_tiles : callable, optional
        Called with how many tiles of a large image are measured, and how many there are.
    """

    pictures: bool = True
    mapped: bool = True
    level: float | None = None
    rows_for: RowsFor | None = None
    on_tiles: OnTiles | None = None


TERMS_ALONE = Wanted(pictures=False, mapped=False)


class Judge:
    """Judges images one by one, whatever company they come in.

    Parameters
    ----------
    model : Model
    runtime : Runtime
        Where to compute, and how many threads decode.
    roi : Roi, optional
        Outside it nothing counts, beside what the model itself leaves out.

    Attributes
    ----------
    scorer : Scorer
        Makes scores of the terms that `measured` gives.
    """

    def __init__(self, model: Model, runtime: Runtime, roi: Roi | None = None) -> None:
        self.model, self.runtime, self.scorer = model, runtime, Scorer(model)
        self._rule, self._roi, self._calibration = model.rule, roi, model.calibration
        self._cover = None if roi is None else model.cover(roi)

    def of(self, model: Model) -> Judge:
        """Judge with another model and the same runtime and region."""
        return Judge(model, self.runtime, self._roi)

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

    def caveat(self, score: str, how: Inversion) -> str | None:
        """What keeps calibration images from telling how unusual images mapped like this are."""
        found = []
        if how.mapping != "encoder" and self.scorer.needs_latent(score):
            found.append(
                "The threshold and the p-values of a score made of reconstructions were set with "
                f"the encoder mapping: with --mapping {how.mapping} they are no promise."
            )
        if self._cover is not None:
            found.append(
                "The threshold and the p-values were set without --roi: give it to train to have "
                "them exact."
            )
        return " ".join(found) or None

    def hint(self, score: str, how: Inversion) -> str | None:
        """What a search is not good for with a score, or None."""
        if how.mapping == "encoder" or self.scorer.needs_latent(score):
            return None
        return (
            f"--mapping {how.mapping} changes the reconstructions and what the terms say of them, "
            f"not the {score} score, which is made of other terms: --score paper or anogan is."
        )

    def threshold(self, request: ScoreRequest) -> Threshold:
        """Score above which an image is called anomalous at a rate; None is the model's own."""
        asked, score = request.false_alarm_rate, request.score
        rate = self.model.false_alarm_rate if asked is None else asked
        scores = self.scorer.calibration_scores(score)
        self.check(request.inversion)
        level, effective, warning = calibration.threshold(scores, rate_in_range(rate))
        return Threshold(
            score=level,
            false_alarm_rate=rate,
            effective_rate=effective,
            calibration_images=len(scores),
            warning=" ".join(filter(None, (warning, self.caveat(score, request.inversion))))
            or None,
            uses_labels=asked is None and self.model.uses_labels,
        )

    def levels(self, request: ScoreRequest) -> Levels:
        """Levels that images and regions must exceed to be called anomalous.

        The level of regions is what the worst place of a normal image exceeds at the false-alarm
        rate.

        Raises
        ------
        ModelError
            When nearest training images are asked for and the model keeps none.
        """
        if request.nearest and self.model.neighbours is None:
            raise ModelError(
                "--nearest: this model keeps nothing of its training images.",
                hint="It learned from parts of images, of which none are kept."
                if self._rule.patch
                else "Train with --keep-thumbnails.",
            )
        threshold = self.threshold(dataclasses.replace(request, inversion=ENCODER))
        peaks = self._calibration.region_peaks
        region = calibration.threshold(peaks, threshold.false_alarm_rate)[0]
        return Levels(request.score, threshold.score, region, request.nearest)

    def measured(
        self,
        files: Iterable[ImageFile],
        batch_size: int,
        how: Inversion = ENCODER,
        wanted: Wanted = Wanted(),
    ) -> Iterator[list[MeasuredImage]]:
        """Measure images in batches, in input order; of those unreadable, say why.

        Maps, reconstructions and residuals that are not wanted may be empty.
        """
        self.check(how)
        decoded = decode_all(files, self._rule, workers=self.runtime.workers, cover=self._cover)
        if self._rule.patch is not None:
            for outcome in decoded:
                if isinstance(outcome, Skipped):
                    yield [MeasuredImage(outcome)]
                else:
                    yield [self._measure_large(outcome, how, wanted)]
            return
        waiting: list[Decoded | Skipped] = []
        readable = 0
        for outcome in decoded:
            waiting.append(outcome)
            readable += isinstance(outcome, Decoded)
            if readable == batch_size or len(waiting) == 4 * batch_size:
                yield self._measure(waiting, how, wanted)
                waiting, readable = [], 0
        if waiting:
            yield self._measure(waiting, how, wanted)

    def _measure(
        self, outcomes: list[Decoded | Skipped], how: Inversion, wanted: Wanted
    ) -> list[MeasuredImage]:
        pixels = [outcome.pixels for outcome in outcomes if isinstance(outcome, Decoded)]
        if not pixels:
            return [MeasuredImage(outcome) for outcome in outcomes]
        x = torch.from_numpy(np.stack(pixels)).to(self.runtime.device)
        measured = self.model.measurer.measure(x, how, mapped=wanted.mapped)
        arrays = (measured.terms, measured.x_hat, measured.residual, measured.anomaly_map)
        found = iter(zip(*arrays, strict=True))
        rows: list[MeasuredImage] = []
        for outcome in outcomes:
            if isinstance(outcome, Skipped):
                rows.append(MeasuredImage(outcome))
                continue
            terms, x_hat, residual, anomaly_map = next(found)
            count = outcome.canvas.counted
            rows.append(MeasuredImage(outcome, terms, x_hat, count(residual), count(anomaly_map)))
        return rows

    def _measure_large(self, decoded: Decoded, how: Inversion, wanted: Wanted) -> MeasuredImage:
        canvas, finder = decoded.canvas, None
        mapped = wanted.mapped and self.model.maps is not None
        if mapped and wanted.level is not None and block_side(canvas.height, canvas.width) > 1:
            finder = Finder(wanted.level)
        spool = None if wanted.rows_for is None else wanted.rows_for(canvas)
        takers = [take for take in (finder and finder.add, spool) if take]

        def on_rows(top: int, rows: Floats) -> None:
            for take in takers:
                take(top, rows)

        tiled = measure_tiled(
            self.model.measurer,
            decoded,
            how,
            picture=wanted.pictures,
            mapped=mapped,
            on_rows=on_rows,
            on_tiles=wanted.on_tiles,
        )
        found = tiled.measured
        anomaly_map = found.anomaly_map[0]
        if wanted.mapped and not mapped:
            anomaly_map = self.tile_map(tiled.terms, tiled.grid)
        residual, anomaly_map = canvas.counted(found.residual[0]), canvas.counted(anomaly_map)
        return MeasuredImage(decoded, found.terms[0], found.x_hat[0], residual, anomaly_map, finder)

    def tile_map(self, terms: np.ndarray, grid: Grid) -> np.ndarray:
        """Map of the tiles' own scores (`Grid.spread`), for a model without maps."""
        return grid.spread(self.scorer.scores(terms, DEFAULT_SCORE))

    def baseline(self, decoded: Decoded) -> np.ndarray:
        """Scores of an image by each baseline, in their order; of a large one, its worst tiles."""
        batches = [self.model.baselines.scores(x) for x in views(decoded, self._rule)]
        return np.array([worst(np.concatenate([b[name] for b in batches])) for name in NAMES])

    def judge(self, decoded: Decoded, measured: MeasuredImage, levels: Levels) -> ImageScore:
        """Result of one image from what was measured of it; it has no rank and no pictures yet."""
        terms, score = measured.terms, levels.score
        value = float(self.scorer.scores(terms[None], score)[0])
        reference, looks = self.scorer.calibration_scores(score), self._calibration.looks
        return ImageScore(
            rank=None,
            path=decoded.image.path,
            score=value,
            p_value=float(calibration.p_values(np.array([value]), reference)[0]),
            q_value=None,
            verdict="anomalous" if value > levels.image else "normal",
            terms=self.scorer.named(terms, score),
            regions=self._regions(decoded, measured, levels.region),
            residual=None,
            percentiles=self.scorer.percentiles(terms, score),
            mismatch=None if looks is None else looks.reasons(decoded.look),
            nearest=self._nearest(decoded, levels),
        )

    def _regions(
        self, decoded: Decoded, measured: MeasuredImage, level: float
    ) -> tuple[Region, ...]:
        peaks = self._calibration.region_peaks
        if measured.finder is None:
            return regions.find(decoded, measured.anomaly_map, level, peaks)
        extent = (decoded.canvas.height, decoded.canvas.width)
        return measured.finder.found(decoded, extent, peaks)

    def _nearest(self, decoded: Decoded, levels: Levels) -> tuple[Neighbour, ...] | None:
        kept = self.model.neighbours
        if not levels.nearest or kept is None:
            return None
        return kept.nearest(latent(self.model.networks, decoded.pixels), levels.nearest)


def ranked(scored: Sequence[ImageScore]) -> list[ImageScore]:
    """Images with ranks and q-values, most anomalous first; ties in the order of paths."""
    ordered = sorted(scored, key=lambda image: (-image.score, image.path))
    q = calibration.q_values(np.array([image.p_value for image in ordered]))
    return [
        dataclasses.replace(image, rank=rank, q_value=float(value))
        for rank, (image, value) in enumerate(zip(ordered, q, strict=True), start=1)
    ]


def nothing_readable(skipped: Sequence[Skipped]) -> InputError:
    """Error for a run in which no image could be read."""
    return InputError(
        f"none of the {len(skipped)} images can be read.",
        hint=f"The first: {skipped[0].path!r}: {skipped[0].reason}." if skipped else None,
    )


def searched(how: Inversion) -> Search | None:
    """What results say of a search; None where there is none."""
    if how.mapping == "encoder":
        return None
    return Search(steps=how.length, discrimination_loss=how.discrimination_loss, seed=how.seed)
