"""Compare the scores of models with labels, and compute every figure of ``anoscan eval``."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import chain

import numpy as np

from anoscan.core.errors import InputError
from anoscan.core.progress import OnProgress, Progress, notify
from anoscan.core.results import (
    ClassReport,
    ComparedModel,
    EvalImages,
    EvalReport,
    ModelReference,
    PixelReport,
    Skipped,
)
from anoscan.evaluation import metrics
from anoscan.evaluation.labels import Labelled, LabelledSet
from anoscan.evaluation.pixels import RUN, PixelScores, pixel_metrics
from anoscan.images.decode import Decoded
from anoscan.images.masks import read_mask
from anoscan.model.judge import Judge, Wanted, nothing_readable, searched
from anoscan.scoring.baselines import NAMES as BASELINE_NAMES
from anoscan.scoring.choices import ScoreRequest

MISSING_SHOWN = 5  # paths that a note names, of labels without an image or of masks without a file
_BUFFERS = 16  # full runs of pixels that all classes together may keep in memory

Kind = tuple[str | None, bool]  # the class of an image, and whether the image is anomalous


@dataclass(frozen=True)
class Subject:
    """A model that is evaluated: what measures images with it, and its name in the report."""

    judge: Judge
    reference: ModelReference


def assess(
    subjects: Sequence[Subject], given: LabelledSet, request: ScoreRequest, on_progress: OnProgress
) -> EvalReport:
    """Score labelled images by one or more models and measure how well scores and labels agree.

    The report is about the first of `subjects`, and the others are compared with it. `request`
    names the score and the false-alarm rate, and says how images are mapped to latents.
    `on_progress` is called after each image.

    Raises
    ------
    InputError
        When no image can be read.
    """
    # A request that a model cannot meet must fail here, before hours of scoring.
    for subject in subjects:
        subject.judge.threshold(request)
    total = len(given.images) * len(subjects)
    for what, paths in (("labels without an image", given.missing), ("no such mask", given.lost)):
        if paths:
            notify(on_progress, "scoring", f"{what}: {_some(paths)}", total)
    measured = []
    for number, subject in enumerate(subjects):
        done = number * len(given.images)
        measured.append(_Measured.of(subject, given, request, done, total, on_progress))
    first = measured[0].report()
    return dataclasses.replace(first, comparison=_compared(measured) if measured[1:] else None)


def _some(paths: Sequence[str]) -> str:
    shown, more = ", ".join(paths[:MISSING_SHOWN]), len(paths) - MISSING_SHOWN
    return f"{shown}{f' and {more:,} more' if more > 0 else ''}"


@dataclass(frozen=True)
class _Measured:
    """What one model measured of the labelled images.

    `values` (n, k) are raw terms, and `baselines` (n, b) the scores of the baselines. They have the
    order of `rows`, the images that could be read. `pixels` is None without masks.
    """

    subject: Subject
    given: LabelledSet
    request: ScoreRequest
    rows: list[Labelled]
    values: np.ndarray
    baselines: np.ndarray
    skipped: list[Skipped]
    pixels: _Pixels | None

    @classmethod
    def of(
        cls,
        subject: Subject,
        given: LabelledSet,
        request: ScoreRequest,
        done: int,
        total: int,
        on_progress: OnProgress,
    ) -> _Measured:
        """Measure all images; `done` and `total` count images over all models, for progress."""
        rows: list[Labelled] = []
        values, baselines, skipped = [], [], []
        judge = subject.judge
        files = [item.image for item in given.images]
        by_path = {item.image.path: item for item in given.images}
        wanted = Wanted(request.score, pictures=False, mapped=given.masks)
        batches = judge.measured(files, request.batch_size, request.inversion, wanted)
        with ExitStack() as stack:
            pixels = _Pixels(given.images, stack) if given.masks else None
            for decoded, row, _, _, anomaly_map, _ in chain.from_iterable(batches):
                done += 1
                if isinstance(decoded, Skipped):
                    skipped.append(decoded)
                else:
                    item = by_path[decoded.image.path]
                    rows.append(item)
                    values.append(row)
                    baselines.append(judge.baseline(decoded))
                    if pixels is not None:
                        pixels.add(item, decoded, anomaly_map)
                on_progress(Progress("scoring", done, total))
            if not rows:
                raise nothing_readable(skipped)
            if pixels is not None:
                pixels.measure()
        return cls(
            subject, given, request, rows, np.array(values), np.array(baselines), skipped, pixels
        )

    @property
    def anomalous(self) -> np.ndarray:
        return np.array([row.anomalous for row in self.rows], dtype=bool)

    @property
    def scores(self) -> np.ndarray:
        return self.subject.judge.scorer.scores(self.values, self.request.score)

    def report(self) -> EvalReport:
        """Return all figures of this model, without a comparison."""
        judge, request, given = self.subject.judge, self.request, self.given
        scores, anomalous = self.scores, self.anomalous
        threshold = judge.threshold(request)
        level = threshold.score
        found = metrics.detection(scores, anomalous)
        return EvalReport(
            model=self.subject.reference,
            images=EvalImages(
                normal=int((~anomalous).sum()),
                anomalous=int(anomalous.sum()),
                skipped=tuple(self.skipped),
                unlabelled=given.unlabelled,
                missing=len(given.missing),
            ),
            auroc=found.auroc,
            auroc_ci95=found.auroc_ci95,
            average_precision=found.average_precision,
            undefined=found.undefined,
            threshold=threshold,
            at_threshold=metrics.at_threshold(scores, anomalous, level),
            baselines=self._aurocs(BASELINE_NAMES, self.baselines),
            terms=self._aurocs(judge.scorer.columns, self.values),
            pixel=self.pixels.all if self.pixels else None,
            classes=self._classes(scores, anomalous, level),
            curves=metrics.curves(scores, anomalous),
            mapping=request.inversion.mapping,
            search=searched(request.inversion),
            warning=judge.caveat(request.score, request.inversion),
            threshold_uses_labels=threshold.uses_labels,
        )

    def _aurocs(
        self, names: Sequence[str], columns: np.ndarray
    ) -> dict[str, dict[str, float | None]]:
        return metrics.aurocs(dict(zip(names, columns.T, strict=True)), self.anomalous)

    def _classes(
        self, scores: np.ndarray, anomalous: np.ndarray, level: float
    ) -> tuple[ClassReport, ...] | None:
        kinds = [row.cls for row in self.rows]
        if not any(kinds):
            return None
        found = []
        for name in sorted(set(kinds), key=lambda kind: (kind is None, kind)):
            inside = np.array([kind == name for kind in kinds])
            # A class that has no normal images is compared with all normal images.
            own = bool((inside & ~anomalous).any())
            chosen = inside if own else inside | ~anomalous
            measured = metrics.detection(scores[chosen], anomalous[chosen], resamples=0)
            at = metrics.at_threshold(scores[inside], anomalous[inside], level)
            found.append(
                ClassReport(
                    name=name,
                    normal=int((inside & ~anomalous).sum()),
                    anomalous=int((inside & anomalous).sum()),
                    against="own normals" if own else "all normals",
                    auroc=measured.auroc,
                    average_precision=measured.average_precision,
                    false_alarm_rate=at.false_alarm_rate,
                    recall=at.recall,
                    pixel=self.pixels.classes.get(name) if self.pixels else None,
                )
            )
        return tuple(found)


class _Pixels:
    """Collects the pixels of labelled images by class and label; `measure` makes figures of them.

    `all` has the figures of all images, `classes` those of each class that has anomalous images.
    """

    def __init__(self, items: Sequence[Labelled], stack: ExitStack) -> None:
        kinds: set[Kind] = {(item.cls, item.anomalous) for item in items}
        run = max(RUN // 64, min(RUN, RUN * _BUFFERS // len(kinds)))
        self._parts = {kind: stack.enter_context(PixelScores(run)) for kind in kinds}
        self._without_mask = 0
        self._skipped: list[Skipped] = []

    def add(self, item: Labelled, decoded: Decoded, anomaly_map: np.ndarray) -> None:
        """Take an image; in a normal image without a mask, every pixel is normal.

        An anomalous image without a mask is counted, and a mask that cannot be used is noted.
        """
        if item.mask is None and item.anomalous:
            self._without_mask += 1
            return
        try:
            mask = (
                np.zeros(decoded.shape, np.bool_)
                if item.mask is None
                else read_mask(item.mask, decoded)
            )
        except InputError as error:
            self._skipped.append(Skipped(path=str(item.mask), reason=error.message))
            return
        self._parts[item.cls, item.anomalous].add(anomaly_map, mask)

    def measure(self) -> None:
        """Set the figures of all images and of each class.

        A class is measured with its own normal images. Without any, all normal images are used.
        """
        parts = self._parts
        found = pixel_metrics(list(parts.values()))
        lost = self._without_mask + len(self._skipped)
        reason = f"{found.undefined}: {lost} masks are missing or cannot be used"
        self.all: PixelReport = dataclasses.replace(
            found,
            undefined=reason if found.undefined and lost else found.undefined,
            without_mask=self._without_mask,
            skipped=tuple(self._skipped),
        )
        normal = [part for (_, anomalous), part in parts.items() if not anomalous]
        self.classes: dict[str | None, PixelReport] = {}
        for (name, anomalous), part in parts.items():
            if anomalous:
                own = parts.get((name, False))
                self.classes[name] = pixel_metrics([part, *([own] if own else normal)])


def _compared(measured: Sequence[_Measured]) -> tuple[ComparedModel, ...]:
    """Compare all models on the images that all of them could read; the first is the base."""
    shared = set.intersection(*({row.image.path for row in one.rows} for one in measured))
    rows = []
    base: np.ndarray | None = None
    for one in measured:
        chosen = np.array([row.image.path in shared for row in one.rows])
        scores, anomalous = one.scores[chosen], one.anomalous[chosen]
        base = scores if base is None else base
        level = one.subject.judge.threshold(one.request).score
        found = metrics.detection(scores, anomalous)
        gain = metrics.difference(scores, base, anomalous)
        rows.append(
            ComparedModel(
                model=one.subject.reference,
                images=int(chosen.sum()),
                auroc=found.auroc,
                auroc_ci95=found.auroc_ci95,
                average_precision=found.average_precision,
                difference=None if gain is None else gain.value,
                difference_ci95=None if gain is None else gain.ci95,
                at_threshold=metrics.at_threshold(scores, anomalous, level),
                pixel=one.pixels.all if one.pixels else None,
                curves=metrics.curves(scores, anomalous),
            )
        )
    return tuple(rows)
