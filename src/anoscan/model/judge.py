"""A model judges single images: terms, score, p-value, verdict and regions."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from anoscan.core import registry
from anoscan.core.arrays import Floats
from anoscan.core.config import rate_in_range
from anoscan.core.errors import InputError, ModelError, UsageError
from anoscan.core.results import ImageScore, Region, Search, Skipped, Threshold
from anoscan.core.runtime import Runtime
from anoscan.images.decode import Decoded, decode_all
from anoscan.images.files import ImageFile
from anoscan.images.roi import Roi
from anoscan.images.tiles import LARGEST_PICTURE, Grid, block_side, worst
from anoscan.model import regions
from anoscan.model.model import Model
from anoscan.model.regions import Finder
from anoscan.report import pictures
from anoscan.report.map_files import MapFiles
from anoscan.report.views import ImageViews, own_canvas
from anoscan.scoring import calibration, measure, tiled
from anoscan.scoring.baselines import NAMES
from anoscan.scoring.choices import DEFAULT_SCORE, ENCODER, SCORES, Inversion, Score, score_named
from anoscan.scoring.neighbours import Nearest, latent
from anoscan.scoring.tiled import OnRows, OnTiles

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
    columns : tuple of str
        Names of all terms that are measured.
    """

    def __init__(
        self,
        model: Model,
        runtime: Runtime,
        roi: Roi | None = None,
    ) -> None:
        self.model, self.runtime = model, runtime
        self._rule, self._roi, self._calibration = model.rule, roi, model.calibration
        self.columns = tuple(model.fitted)
        self._cover = None if roi is None else model.cover(roi)

    def of(self, model: Model) -> Judge:
        """The same with another model."""
        return Judge(model, self.runtime, self._roi)

    def _stream(self, files: Iterable[ImageFile]) -> Iterator[Decoded | Skipped]:
        return decode_all(files, self._rule, workers=self.runtime.workers, cover=self._cover)

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
        return self._names(score)

    def _names(self, score: str) -> tuple[str, ...]:
        return tuple(name for name in score_named(score).weights if name in self.model.fitted)

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

    def caveat(self, score: str, how: Inversion) -> str | None:
        """What keeps the held-out normals from being a yardstick of images mapped like this."""
        found = []
        if how.mapping != "encoder" and self._asks_for_latent(score):
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

    def _asks_for_latent(self, score: str) -> bool:
        weights = zip(self.terms(score), self._weights(score), strict=True)
        return any(w > 0 and registry.load("terms", t).needs_latent for t, w in weights)

    def hint(self, score: str, how: Inversion) -> str | None:
        """What a search is not good for with a score, or None."""
        if how.mapping == "encoder" or self._asks_for_latent(score):
            return None
        return (
            f"--mapping {how.mapping} changes the reconstructions and what the terms say of them, "
            f"not the {score} score, which is made of other terms: --score paper or anogan is."
        )

    def threshold(
        self, false_alarm_rate: float | None, score: str, how: Inversion = ENCODER
    ) -> Threshold:
        """Score above which an image is called anomalous at a rate; None is the model's own."""
        rate = self.model.false_alarm_rate if false_alarm_rate is None else false_alarm_rate
        self.terms(score)
        self.check(how)
        scores = self._calibration_scores[score_named(score).name]
        level, effective, warning = calibration.threshold(scores, rate_in_range(rate))
        return Threshold(
            score=level,
            false_alarm_rate=rate,
            effective_rate=effective,
            calibration_images=len(scores),
            warning=" ".join(filter(None, (warning, self.caveat(score, how)))) or None,
            uses_labels=false_alarm_rate is None and self.model.uses_labels,
        )

    def levels(self, false_alarm_rate: float | None, score: str, nearest: int = 0) -> Levels:
        """Levels that images and regions must exceed to be called anomalous.

        That for regions is the oddness that the worst place of a normal image exceeds at the
        false-alarm rate.
        """
        if nearest and self.model.neighbours is None:
            raise ModelError(
                "--nearest: this model keeps nothing of its training images.",
                hint="It learned from parts of images, of which none are kept."
                if self.model.rule.patch
                else "Train with --keep-thumbnails.",
            )
        peaks = self._calibration.region_peaks
        threshold = self.threshold(false_alarm_rate, score)
        region = calibration.threshold(peaks, threshold.false_alarm_rate)[0]
        return Levels(score, threshold.score, region, nearest)

    def measured(
        self,
        files: Iterable[ImageFile],
        batch_size: int,
        how: Inversion = ENCODER,
        *,
        pictures: bool = True,
        mapped: bool = True,
        levels: Levels | None = None,
        map_files: MapFiles | None = None,
        on_tiles: OnTiles | None = None,
    ) -> Iterator[list[MeasuredImage]]:
        """Batches of outcomes in input order.

        Their oddness is empty unless `mapped`. Without `pictures`, reconstruction and residual of
        large images are empty. With `levels`, regions of large images are found in every row of
        their maps, which the `map_files` takes too; `on_tiles` is told how far one is.
        """
        self.check(how)
        if map_files is not None and self.model.maps is None:
            raise ModelError(
                "this model was trained before there were anomaly maps.",
                hint="Train it again, or use --residuals.",
            )
        if self._rule.patch is not None:
            for outcome in self._stream(files):
                if isinstance(outcome, Skipped):
                    yield [MeasuredImage(outcome)]
                    continue
                spool = None if map_files is None else map_files.spool(outcome.canvas)
                wanted = (pictures, mapped, levels, spool)
                yield [self._measure_tiled(outcome, how, *wanted, on_tiles)]
            return
        waiting: list[Decoded | Skipped] = []
        readable = 0
        for outcome in self._stream(files):
            waiting.append(outcome)
            readable += isinstance(outcome, Decoded)
            if readable == batch_size or len(waiting) == 4 * batch_size:
                yield self._measure(waiting, how, mapped)
                waiting, readable = [], 0
        if waiting:
            yield self._measure(waiting, how, mapped)

    def _measure(
        self, outcomes: list[Decoded | Skipped], how: Inversion, mapped: bool
    ) -> list[MeasuredImage]:
        pixels = [outcome.pixels for outcome in outcomes if isinstance(outcome, Decoded)]
        if not pixels:
            return [MeasuredImage(outcome) for outcome in outcomes]
        x = torch.from_numpy(np.stack(pixels)).to(self.runtime.device)
        model = self.model
        measured = measure.measure(model.networks, model.fitted, x, how, model.maps, mapped=mapped)
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

    def _measure_tiled(
        self,
        decoded: Decoded,
        how: Inversion,
        pictures: bool,
        mapped: bool,
        levels: Levels | None,
        spool: OnRows | None,
        on_tiles: OnTiles | None,
    ) -> MeasuredImage:
        canvas, finder = decoded.canvas, None
        maps = self.model.maps if mapped else None
        if maps and levels and block_side(canvas.height, canvas.width) > 1:
            finder = Finder(levels.region)
        takers = [take for take in (finder and finder.add, spool) if take]

        def on_rows(top: int, rows: Floats) -> None:
            for take in takers:
                take(top, rows)

        whole = tiled.measure_tiled(
            self.model.networks,
            self.model.fitted,
            decoded,
            self._rule,
            self.runtime.device,
            how,
            picture=pictures,
            maps=maps,
            on_rows=on_rows,
            on_tiles=on_tiles,
        )
        found = whole.measured
        anomaly_map = found.anomaly_map[0]
        if mapped and maps is None:
            anomaly_map = self.anomaly_map(whole.terms, whole.grid)
        residual, anomaly_map = canvas.counted(found.residual[0]), canvas.counted(anomaly_map)
        return MeasuredImage(decoded, found.terms[0], found.x_hat[0], residual, anomaly_map, finder)

    def anomaly_map(self, terms: np.ndarray, grid: Grid) -> np.ndarray:
        """Map of the tiles' own scores (`Grid.spread`), for a model without maps."""
        return grid.spread(self.scores(terms, DEFAULT_SCORE))

    def baseline(self, decoded: Decoded) -> np.ndarray:
        """Scores of an image by each baseline, in their order; of a large one, its worst tiles."""
        batches = [self.model.baselines.scores(x) for x in tiled.views(decoded, self._rule)]
        return np.array([worst(np.concatenate([b[name] for b in batches])) for name in NAMES])

    def judge(
        self,
        decoded: Decoded,
        outcome: MeasuredImage,
        levels: Levels,
        residuals: Path | None = None,
        map_files: MapFiles | None = None,
    ) -> ImageScore:
        """Result of one image from what was measured of it; no rank yet.

        The panel of its residual goes to a folder, its map to an atlas, where there are any.
        """
        terms = outcome.terms
        value = float(self.scores(terms[None], levels.score)[0])
        reference = self._calibration_scores[levels.score]
        looks, near = self._calibration.looks, self._nearest(decoded, levels)
        return ImageScore(
            rank=None,
            path=decoded.image.path,
            score=value,
            p_value=float(calibration.p_values(np.array([value]), reference)[0]),
            q_value=None,
            verdict="anomalous" if value > levels.image else "normal",
            terms=self._named_terms(terms, score_named(levels.score)),
            regions=self._regions(decoded, outcome, levels.region),
            residual=None if residuals is None else self._draw(decoded, outcome, near, residuals),
            percentiles=self._percentiles(terms, levels.score),
            mismatch=None if looks is None else looks.reasons(decoded.look),
            nearest=near.named,
            maps=None if map_files is None else self._chart(decoded, outcome, levels, map_files),
        )

    def _regions(
        self, decoded: Decoded, outcome: MeasuredImage, level: float
    ) -> tuple[Region, ...]:
        peaks = self._calibration.region_peaks
        if outcome.finder is None:
            return regions.find(decoded, outcome.anomaly_map, level, peaks)
        extent = (decoded.canvas.height, decoded.canvas.width)
        return outcome.finder.found(decoded, extent, peaks)

    def _chart(
        self, decoded: Decoded, outcome: MeasuredImage, levels: Levels, map_files: MapFiles
    ) -> dict[str, str]:
        if self.model.maps is None:
            raise RuntimeError("measured refuses an atlas without maps")
        canvas = own_canvas(decoded, self._rule) if map_files.drawn else decoded.canvas
        return map_files.write(
            decoded, canvas, outcome.anomaly_map, levels.region, self.model.maps.scale
        )

    def _percentiles(self, terms: np.ndarray, score: str) -> dict[str, float]:
        columns = self._columns(score)
        below = (self._calibration.terms[:, columns] < terms[columns]).mean(0)
        return dict(zip(self.terms(score), (100 * below).tolist(), strict=True))

    def _nearest(self, decoded: Decoded, levels: Levels) -> Nearest:
        kept = self.model.neighbours
        if not levels.nearest or kept is None:
            return Nearest()
        return kept.nearest(latent(self.model.networks, decoded.pixels), levels.nearest)

    def _named_terms(self, terms: np.ndarray, how: Score) -> dict[str, float]:
        values = terms[self._columns(how.name)]
        if not how.raw:
            values = self._scales[how.name].standardise(values[None])[0]
        return dict(zip(self.terms(how.name), values.tolist(), strict=True))

    def seen(self, decoded: Decoded, outcome: MeasuredImage) -> ImageViews:
        """What can be drawn of an image, from what `measured` gave."""
        if self.model.maps is not None:
            shown, scale = outcome.anomaly_map, self.model.maps.scale.brightest
        else:
            shown, scale = outcome.residual, self._calibration.picture_scale
        return ImageViews(decoded, outcome.x_hat, shown, scale, self._rule)

    def _draw(
        self, decoded: Decoded, outcome: MeasuredImage, nearest: Nearest, folder: Path
    ) -> str:
        """Write query | reconstruction | residual | nearest images; returns the path."""
        like = nearest.thumbnails / 127.5 - 1
        target = pictures.output_path(folder, decoded.image.inside)
        scale, query = self._calibration.picture_scale, decoded.canvas.reduced(LARGEST_PICTURE)
        # A square view gets the image's proportions back; what is seen in patches kept them.
        shape = decoded.shape if self._rule.patch is None else None
        panel = pictures.panel(
            query, outcome.x_hat, outcome.residual, scale, shape=shape, like=like
        )
        pictures.save_png(panel, target)
        return target.as_posix()

    def scores(self, terms: np.ndarray, score: str) -> np.ndarray:
        """Scores (n,) of raw terms (n, k) of all columns."""
        how = score_named(score)
        chosen = terms[:, self._columns(how.name)]
        return chosen[:, 0] if how.raw else self._scales[how.name].combine(chosen)

    def among_themselves(self, terms: np.ndarray) -> np.ndarray:
        """Default scores (n,) of images by their raw terms (n, k), on scales of each other."""
        columns, weights = self._columns(DEFAULT_SCORE), self._weights(DEFAULT_SCORE)
        return calibration.cross_fitted_scores(terms[:, columns], weights)

    def calibration_scores(self, score: str) -> np.ndarray:
        """Scores (n,) of the calibration images, each on scales fitted without it."""
        self.terms(score)
        return self._calibration_scores[score]

    def _columns(self, score: str) -> list[int]:
        return [self.columns.index(name) for name in self._names(score)]

    def _weights(self, score: str) -> np.ndarray:
        """How much each column counts: what the score gives it, as far as it can be trusted."""
        chosen = score_named(score).weights
        given = np.array([chosen[name] for name in self._names(score)], dtype=np.float64)
        trusted: np.ndarray = self._calibration.weights[self._columns(score)] * given
        # Where nothing can be trusted, nothing can be preferred.
        return trusted if trusted.any() else given

    @cached_property
    def _scales(self) -> dict[str, calibration.TermScale]:
        terms, tiles = self._calibration.terms, self._calibration.tiles
        found = {}
        for name, score in SCORES.items():
            if not self._has(score):
                continue
            columns, weights = self._columns(name), self._weights(name)
            found[name] = (
                calibration.TermScale.fit(terms[:, columns], weights)
                if tiles is None
                else calibration.TermScale.of_tiles(tiles[:, :, columns], weights)
            )
        return found

    @cached_property
    def _calibration_scores(self) -> dict[str, np.ndarray]:
        found = {}
        for name, score in SCORES.items():
            if not self._has(score):
                continue
            columns, weights = self._columns(name), self._weights(name)
            terms, tiles = self._calibration.terms[:, columns], self._calibration.tiles
            crossed = (
                calibration.cross_fitted_scores(terms, weights)
                if tiles is None
                else calibration.cross_fitted_tile_scores(terms, tiles[:, :, columns], weights)
            )
            found[name] = terms[:, 0] if score.raw else crossed
        return found


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
