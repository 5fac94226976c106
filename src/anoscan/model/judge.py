"""Judge single images with a model: terms, score, p-value, verdict and regions."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch

from anoscan.core.ahead import ahead
from anoscan.core.arrays import Floats
from anoscan.core.config import rate_in_range
from anoscan.core.errors import InputError, ModelError, UsageError
from anoscan.core.results import ImageScore, Neighbour, Region, Search, Skipped, Threshold
from anoscan.core.runtime import Runtime
from anoscan.images.canvas import Canvas
from anoscan.images.decode import Decoded, decode_all
from anoscan.images.files import ImageFile
from anoscan.images.roi import Roi
from anoscan.images.tiles import block_side, worst
from anoscan.model import regions
from anoscan.model.model import Model
from anoscan.model.regions import Finder
from anoscan.model.score_of_terms import Scorer
from anoscan.scoring import calibration
from anoscan.scoring.baselines import NAMES
from anoscan.scoring.choices import ENCODER, Inversion, ScoreRequest
from anoscan.scoring.measure import Measurer
from anoscan.scoring.neighbours import latent
from anoscan.scoring.terms import Evidence
from anoscan.scoring.tiled import OnRows, OnTiles, measure_tiled, views

_NOTHING = np.empty(0)


class MeasuredImage(NamedTuple):
    """What was measured of one image; the arrays are empty for an image that was skipped.

    Parameters
    ----------
    decoded : Decoded or Skipped
        The image, or the reason why it could not be read.
    terms : ndarray of shape (k,), float64
        The raw terms.
    x_hat : ndarray of shape (c, h, w), float32
        The reconstruction of the whole image, 0 where it was cropped.
    residual, anomaly_map : ndarray of shape (h, w), float32
        The absolute residual of the pixels, and the map, which may be coarser than a large image.
    finder : Finder or None
        The finder that was given every row of the map, where `anomaly_map` is coarser.
    """

    decoded: Decoded | Skipped
    terms: np.ndarray = _NOTHING
    x_hat: np.ndarray = _NOTHING
    residual: np.ndarray = _NOTHING
    anomaly_map: np.ndarray = _NOTHING
    finder: Finder | None = None


@dataclass(frozen=True)
class Levels:
    """The levels of a score at a false-alarm rate, for images and for regions in them.

    Parameters
    ----------
    score : str
    image, region : float
        Images with a higher score, and places with a higher value of the map, are anomalous.
    nearest : int
        How many of the most similar training images are reported beside each image.
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
    score : str, optional
        The score whose terms are wanted; by default, all terms are measured.
    pictures, mapped : bool
        Whether reconstruction and residual of large images, and anomaly maps, are wanted. Other
        images always have a reconstruction and a residual.
    level : float, optional
        The level above which regions of large images are found, in every row of their maps.
    rows_for : callable, optional
        Takes the canvas of a large image, and returns `on_rows` for `measure_tiled`, or None.
    on_tiles : callable, optional
        See `scoring.tiled.measure_tiled`.
    """

    score: str | None = None
    pictures: bool = True
    mapped: bool = True
    level: float | None = None
    rows_for: RowsFor | None = None
    on_tiles: OnTiles | None = None


TERMS_ALONE = Wanted(pictures=False, mapped=False)


class Judge:
    """Judges images one by one; no result depends on the other images.

    `scorer` turns the terms that `measured` yields into scores.

    Parameters
    ----------
    model : Model
    runtime : Runtime
    roi : Roi, optional
        The region of interest. What is outside it, or outside the model's own, does not count.
    measurer : Measurer, optional
        What measures images; by default the model's own, which is torch.
    """

    def __init__(
        self,
        model: Model,
        runtime: Runtime,
        roi: Roi | None = None,
        measurer: Measurer | None = None,
    ) -> None:
        self.model, self.runtime, self.scorer = (
            model,
            runtime,
            Scorer(model.fitted, model.calibration),
        )
        self._rule, self.roi, self._calibration = model.rule, roi, model.calibration
        self._measurer = measurer or model.measurer
        self._cover = None if roi is None else model.cover(roi)

    def of(self, model: Model) -> Judge:
        """Return a judge with another model and the same runtime and region."""
        return Judge(model, self.runtime, self.roi)

    def check(self, how: Inversion) -> None:
        """Refuse a search that this model cannot do.

        Raises
        ------
        UsageError
            When no GAN was trained, or when the search uses the realness output of a discriminator
            that was trained further in a rotation stage, or that judges pairs (`bigan`).
        """
        if how.mapping != "encoder" and self.model.config.images_shown == 0:
            raise UsageError(
                f"--mapping {how.mapping}: this model has no GAN to search.",
                hint="Leave --mapping out, or train without --images-shown 0.",
            )
        trained_on = "rotation" in self.model.fitted or self.model.config.mapping == "bigan"
        if how.discrimination_loss == "fool" and trained_on:
            raise UsageError(
                "--discrimination-loss fool needs the discriminator as the game left it, and this "
                "model's has learned something else since, or judged pairs.",
                hint="Train with --rotation-images-shown 0 and not with --mapping bigan, or use "
                "--discrimination-loss feature.",
            )

    def caveat(self, score: str, how: Inversion) -> str | None:
        """Return why the threshold and the p-values may not hold for such a run, or None."""
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
        """Return a note that a search does not change this score, or None where it does."""
        if how.mapping == "encoder" or self.scorer.needs_latent(score):
            return None
        return (
            f"--mapping {how.mapping} changes the reconstructions and what the terms say of them. "
            f"The {score} score is made of other terms; --score paper and anogan are made of these."
        )

    def threshold(self, request: ScoreRequest) -> Threshold:
        """Return the score that anomalous images exceed, at the rate of `request` or the model's.

        Raises
        ------
        ModelError
            When the model has none of the terms that the score counts.
        UsageError
            When the model cannot do the search that is asked for; see `check`.
        """
        asked, score = request.false_alarm_rate, request.score
        wanted = rate_in_range(self.model.false_alarm_rate if asked is None else asked)
        scores = self.scorer.calibration_scores(score)
        rate = calibration.automatic_rate(len(scores)) if wanted == "auto" else wanted
        self.check(request.inversion)
        level, effective, warning = calibration.threshold(scores, rate)
        return Threshold(
            score=level,
            false_alarm_rate=rate,
            chosen="auto" if wanted == "auto" else "given",
            effective_rate=effective,
            calibration_images=len(scores),
            uncertainty=calibration.rate_interval(len(scores), rate),
            warning=" ".join(filter(None, (warning, self.caveat(score, request.inversion))))
            or None,
            uses_labels=self.model.reviewed or (asked is None and self.model.uses_labels),
        )

    def levels(self, request: ScoreRequest) -> Levels:
        """Return the levels that images and regions must exceed to be called anomalous.

        The highest place of a normal image exceeds the level of regions at the false-alarm rate.

        Raises
        ------
        ModelError
            When nearest training images are asked for and the model keeps none, or when the model
            has none of the terms that the score counts.
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
        """Measure images, and yield them in batches, in input order.

        Parameters
        ----------
        files : iterable of ImageFile
            The images. Those that cannot be read are yielded as `Skipped`, with the reason.
        batch_size : int
            The number of images that are measured together. Large images are measured singly.
        how : Inversion
        wanted : Wanted
            Maps, reconstructions and residuals that are not wanted may be empty.

        Raises
        ------
        UsageError
            When the model cannot do the search that is asked for; see `check`.
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
        seen: Iterator[tuple[list[Decoded | Skipped], Evidence | None]]
        seen = (self._seen(batch, how) for batch in _batches(decoded, batch_size))
        # A source of files that is slow must not delay results.
        long = isinstance(files, Sequence) and len(files) > batch_size
        if long:
            seen = ahead(seen, "networks")
        found = (self._measure(*batch, wanted) for batch in seen)
        yield from ahead(found, "terms") if long else found

    def _seen(
        self, outcomes: list[Decoded | Skipped], how: Inversion
    ) -> tuple[list[Decoded | Skipped], Evidence | None]:
        """Run the networks on images."""
        pixels = [outcome.pixels for outcome in outcomes if isinstance(outcome, Decoded)]
        if not pixels:
            return outcomes, None
        x = torch.from_numpy(np.stack(pixels)).to(self.runtime.device)
        return outcomes, self._measurer.evidence(x, how)

    def _measure(
        self,
        outcomes: list[Decoded | Skipped],
        evidence: Evidence | None,
        wanted: Wanted,
    ) -> list[MeasuredImage]:
        if evidence is None:
            return [MeasuredImage(outcome) for outcome in outcomes]
        only = self._only(wanted)
        measured = self._measurer.of_evidence(evidence, mapped=wanted.mapped, only=only)
        arrays = (measured.terms, measured.x_hat, measured.residual, measured.anomaly_map)
        found = iter(zip(*arrays, strict=True))
        rows: list[MeasuredImage] = []
        for outcome in outcomes:
            if isinstance(outcome, Skipped):
                rows.append(MeasuredImage(outcome))
                continue
            terms, x_hat, residual, anomaly_map = next(found)
            canvas = outcome.canvas
            x_hat, residual = canvas.of_image(x_hat), canvas.counted(residual)
            rows.append(MeasuredImage(outcome, terms, x_hat, residual, canvas.counted(anomaly_map)))
        return rows

    def _measure_large(self, decoded: Decoded, how: Inversion, wanted: Wanted) -> MeasuredImage:
        canvas, finder = decoded.canvas, None
        if (
            wanted.mapped
            and wanted.level is not None
            and block_side(canvas.height, canvas.width) > 1
        ):
            finder = Finder(wanted.level)
        spool = None if wanted.rows_for is None else wanted.rows_for(canvas)
        takers = [take for take in (finder and finder.add, spool) if take]

        def on_rows(top: int, rows: Floats) -> None:
            for take in takers:
                take(top, rows)

        tiled = measure_tiled(
            self._measurer,
            decoded,
            how,
            picture=wanted.pictures,
            mapped=wanted.mapped,
            only=self._only(wanted),
            on_rows=on_rows,
            on_tiles=wanted.on_tiles,
        )
        found = tiled.measured
        residual, anomaly_map = map(canvas.counted, (found.residual[0], found.anomaly_map[0]))
        return MeasuredImage(decoded, found.terms[0], found.x_hat[0], residual, anomaly_map, finder)

    def _only(self, wanted: Wanted) -> tuple[str, ...] | None:
        return None if wanted.score is None else self.scorer.terms(wanted.score)

    def baseline(self, decoded: Decoded) -> np.ndarray:
        """Return the scores of an image, or of its worst tiles, by each of `baselines.NAMES`."""
        batches = [self.model.baselines.scores(x) for x in views(decoded, self._rule)]
        return np.array([worst(np.concatenate([b[name] for b in batches])) for name in NAMES])

    def judge(self, batch: Sequence[MeasuredImage], levels: Levels) -> list[ImageScore]:
        """Return the results of measured images; they have no rank, q-value or pictures yet.

        Images that could not be read have no result.

        Raises
        ------
        ModelError
            When a score or its level is no finite number: any verdict would be made up.
        """
        readable = [(m.decoded, m) for m in batch if isinstance(m.decoded, Decoded)]
        if not readable:
            return []
        scorer, score = self.scorer, levels.score
        terms = np.stack([measured.terms for _, measured in readable])
        scores = scorer.scores(terms, score)
        finite = np.isfinite(scores) & math.isfinite(levels.image)
        if not finite.all():
            first = readable[int(finite.argmin())][0]
            raise ModelError(
                f"the model gives no score for {first.image.path}: its weights are damaged.",
                hint="Copy the model again from where it came from, or train it again.",
            )
        names = scorer.terms(score)
        shown, below = scorer.shown(terms, score), scorer.percentiles(terms, score)
        p = calibration.p_values(scores, scorer.calibration_scores(score))
        found = []
        for row, (decoded, measured) in enumerate(readable):
            anomalous = bool(scores[row] > levels.image)
            image = ImageScore(
                rank=None,
                path=decoded.image.path,
                score=float(scores[row]),
                p_value=float(p[row]),
                q_value=None,
                verdict="anomalous" if anomalous else "normal",
                terms=dict(zip(names, shown[row].tolist(), strict=True)),
                regions=self._regions(decoded, measured, levels.region, anomalous),
                residual=None,
                percentiles=dict(zip(names, below[row].tolist(), strict=True)),
                nearest=self._nearest(decoded, levels),
            )
            looks = self._calibration.looks
            mismatch = looks.reasons(decoded.look, located=image.located)
            found.append(
                image if mismatch is None else dataclasses.replace(image, mismatch=mismatch)
            )
        return found

    def _regions(
        self, decoded: Decoded, measured: MeasuredImage, level: float, anomalous: bool
    ) -> tuple[Region, ...]:
        """Return the regions above a level, or else the hottest place if the image is anomalous."""
        peaks = self._calibration.region_peaks
        if measured.finder is None:
            found = regions.find(decoded, measured.anomaly_map, level, peaks)
        else:
            extent = (decoded.canvas.height, decoded.canvas.width)
            found = measured.finder.found(decoded, extent, peaks)
        if found or not anomalous:
            return found
        return regions.hottest(decoded, measured.anomaly_map, peaks)

    def _nearest(self, decoded: Decoded, levels: Levels) -> tuple[Neighbour, ...] | None:
        kept = self.model.neighbours
        if not levels.nearest or kept is None:
            return None
        return kept.nearest(latent(self.model.networks, decoded.pixels), levels.nearest)


def _batches(outcomes: Iterable[Decoded | Skipped], size: int) -> Iterator[list[Decoded | Skipped]]:
    """Yield outcomes in batches with at most `size` readable images."""
    waiting: list[Decoded | Skipped] = []
    readable = 0
    for outcome in outcomes:
        waiting.append(outcome)
        readable += isinstance(outcome, Decoded)
        if readable == size or len(waiting) == 4 * size:
            yield waiting
            waiting, readable = [], 0
    if waiting:
        yield waiting


def nothing_readable(skipped: Sequence[Skipped]) -> InputError:
    """Make the error for a run in which no image could be read."""
    return InputError(
        f"none of the {len(skipped)} images can be read.",
        hint=f"The first: {skipped[0].path!r}: {skipped[0].reason}." if skipped else None,
    )


def searched(how: Inversion) -> Search | None:
    """Return what a report says of the search; None where the encoder gave the latents."""
    if how.mapping == "encoder":
        return None
    return Search(steps=how.length, discrimination_loss=how.discrimination_loss, seed=how.seed)
