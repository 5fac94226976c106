"""Score the images of a folder one after the other, and rank them."""

from __future__ import annotations

import dataclasses
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple, overload

import numpy as np

from anoscan.core.progress import OnProgress, Progress
from anoscan.core.results import (
    AtRate,
    ImageScore,
    ModelReference,
    Neighbour,
    Region,
    ScoreReport,
    Skipped,
    Threshold,
)
from anoscan.images.decode import Decoded
from anoscan.images.files import ImageFile
from anoscan.model.judge import Judge, MeasuredImage, Wanted, nothing_readable, searched
from anoscan.report.views import ImageViews, OnImage, ViewFiles
from anoscan.scoring import calibration
from anoscan.scoring.choices import RATES, ScoreRequest
from anoscan.training import health


@dataclass(frozen=True)
class Ranking:
    """Scores images as a request asks for.

    `views` writes pictures and map files of every image. `on_image` is called with each result and
    the views of its image. `on_progress` is called after each batch, and between the tiles of a
    large image.
    """

    judge: Judge
    request: ScoreRequest
    views: ViewFiles | None
    on_image: OnImage | None
    on_progress: OnProgress

    def stream(self, files: Iterable[ImageFile]) -> Iterator[ImageScore | Skipped]:
        """Yield results in input order, without rank and q-value; memory stays bounded."""
        levels, request = self.judge.levels(self.request), self.request
        total = len(files) if isinstance(files, Sequence) else 0
        done = 0

        def on_tiles(measured: int, tiles: int) -> None:
            self.on_progress(Progress("scoring", done, total, tiles=(measured, tiles)))

        views = self.views
        wanted = Wanted(
            score=request.score,
            pictures=self.on_image is not None or (views is not None and views.drawn),
            level=levels.region,
            rows_for=None if views is None else views.rows_for,
            on_tiles=on_tiles,
        )
        batches = self.judge.measured(files, request.batch_size, request.inversion, wanted)
        workers = self.judge.runtime.workers if self.judge.model.rule.patch is None else 1
        with ThreadPoolExecutor(workers, thread_name_prefix="draw") as drawing:
            for batch in batches:
                readable = [m for m in batch if isinstance(m.decoded, Decoded)]
                results = zip(self.judge.judge(readable, levels), readable, strict=True)
                write = partial(self._written, level=levels.region)
                # Pictures are drawn by several threads; results keep their order.
                threaded = views is not None and not views.in_order
                drawn = (drawing.map if threaded else map)(write, results)
                for measured in batch:
                    done += 1
                    if isinstance(measured.decoded, Skipped):
                        yield measured.decoded
                        continue
                    result, seen = next(drawn)
                    if self.on_image is not None and seen is not None:
                        self.on_image(result, seen)
                    yield result
                self.on_progress(Progress("scoring", done, total))

    def _written(
        self, found: tuple[ImageScore, MeasuredImage], level: float
    ) -> tuple[ImageScore, ImageViews | None]:
        """Write the files of an image, and return its result and its views, where wanted."""
        result, measured = found
        if isinstance(measured.decoded, Skipped) or (self.views is None and self.on_image is None):
            return result, None
        seen = ImageViews.of(self.judge.model, measured.decoded, measured)
        if self.views is not None:
            result = self.views.write(result, seen, level)
        return result, seen

    def report(
        self,
        files: Sequence[ImageFile],
        model: ModelReference,
        elsewhere: Elsewhere | None = None,
    ) -> ScoreReport:
        """Score and rank images, the most anomalous first; without files, the report is empty.

        `elsewhere` scores the files in place of `stream`; its results may come in any order.

        Raises
        ------
        InputError
            When none of the images can be read.
        """
        images = RankedImages()
        skipped: list[Skipped] = []
        anomalous = 0
        scored = self.stream(files) if elsewhere is None else elsewhere(self, files, model.path)
        for outcome in scored:
            if isinstance(outcome, Skipped):
                skipped.append(outcome)
            else:
                images.add(outcome)
                anomalous += outcome.verdict == "anomalous"
        if files and not images:
            raise nothing_readable(skipped)
        images.rank()
        request = self.request
        return ScoreReport(
            model=model,
            score=request.score,
            mapping=request.inversion.mapping,
            search=searched(request.inversion),
            threshold=self._compared(self.judge.threshold(request), images.scores),
            counts={"scored": len(images), "anomalous": anomalous, "skipped": len(skipped)},
            images=images,
            skipped=tuple(skipped),
            warning=health.of_scores(len(images), anomalous),
            health=health.of_model(model.name, self.judge.model.metadata),
        )

    def _compared(self, used: Threshold, scores: np.ndarray) -> Threshold:
        """Add to a threshold how many of the images with `scores` (n,) others would call."""
        held_out = self.judge.scorer.calibration_scores(self.request.score)
        others = []
        for rate in RATES:
            level, _, warning = calibration.threshold(held_out, rate)
            if warning is None and level != used.score:
                found = int((scores > level).sum())
                others.append(AtRate(false_alarm_rate=rate, threshold=level, anomalous=found))
        return dataclasses.replace(used, at_other_rates=tuple(others))


# Scores the files of a ranking with the model at this path or URL.
Elsewhere = Callable[[Ranking, Sequence[ImageFile], str], Iterable[ImageScore | Skipped]]


class _Extras(NamedTuple):
    """The fields of an image that most images do not have."""

    regions: tuple[Region, ...] = ()
    residual: str | None = None
    mismatch: tuple[str, ...] | None = None
    nearest: tuple[Neighbour, ...] | None = None
    maps: dict[str, str] | None = None


class RankedImages(Sequence[ImageScore]):
    """Results of many images in little memory: each is made anew when it is read.

    An image takes about 190 bytes beside its path. Regions, files and the like take more, in those
    images that have some.
    """

    def __init__(self) -> None:
        self._paths: list[str] = []
        self._numbers = array("d")  # of each image: score, p-value, terms, percentiles
        self._anomalous = bytearray()
        self._extras: dict[int, _Extras] = {}
        self._terms: tuple[str, ...] = ()
        self._order, self._q = np.empty(0, np.intp), np.empty(0)

    def add(self, image: ImageScore) -> None:
        """Add an image; all have the same terms, and percentiles of all of them."""
        self._terms = tuple(image.terms)
        percentiles = [image.percentiles[term] for term in self._terms]
        self._numbers.extend([image.score, image.p_value, *image.terms.values(), *percentiles])
        self._anomalous.append(image.verdict == "anomalous")
        extras = _Extras(*(getattr(image, name) for name in _Extras._fields))
        if extras != _Extras():
            self._extras[len(self._paths)] = extras
        self._paths.append(image.path)

    @property
    def scores(self) -> np.ndarray:
        """Scores (n,) of the images, in the order in which they were added."""
        return np.array(self._numbers[:: 2 + 2 * len(self._terms)])

    def rank(self) -> None:
        """Sort the images, the most anomalous first and ties by path; give ranks and q-values."""
        by_path = np.array(sorted(range(len(self._paths)), key=self._paths.__getitem__), np.intp)
        table = np.frombuffer(self._numbers).reshape(len(by_path), 2 + 2 * len(self._terms))
        self._order = by_path[np.argsort(-table[by_path, 0], kind="stable")]
        self._q = calibration.q_values(table[self._order, 1])

    def __len__(self) -> int:
        return len(self._paths)

    @overload
    def __getitem__(self, index: int) -> ImageScore: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[ImageScore]: ...
    def __getitem__(self, index: int | slice) -> ImageScore | Sequence[ImageScore]:
        """Return the image of rank `index` + 1, or several; all of them are this object."""
        places = range(len(self))[index]
        if isinstance(places, range):
            return self if places == range(len(self)) else tuple(self[place] for place in places)
        found, terms = int(self._order[places]), self._terms
        first = found * (2 + 2 * len(terms))
        score, p_value, *values = self._numbers[first : first + 2 + 2 * len(terms)]
        return ImageScore(
            rank=places + 1,
            path=self._paths[found],
            score=score,
            p_value=p_value,
            q_value=float(self._q[places]),
            verdict="anomalous" if self._anomalous[found] else "normal",
            terms=dict(zip(terms, values, strict=False)),
            percentiles=dict(zip(terms, values[len(terms) :], strict=True)),
            **self._extras.get(found, _Extras())._asdict(),
        )

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and tuple(self) == tuple(other)

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"<{len(self):,} ranked images>"
