"""Score the images of a folder one after the other, and rank them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from anoscan.core.progress import OnProgress, Progress
from anoscan.core.results import ImageScore, ModelReference, ScoreReport, Skipped
from anoscan.images.files import ImageFile
from anoscan.model.judge import Judge, Wanted, nothing_readable, ranked, searched
from anoscan.report.views import ImageViews, OnImage, ViewFiles
from anoscan.scoring.choices import ScoreRequest
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
            pictures=self.on_image is not None or (views is not None and views.drawn),
            level=levels.region,
            rows_for=None if views is None else views.rows_for,
            on_tiles=on_tiles,
        )
        for batch in self.judge.measured(files, request.batch_size, request.inversion, wanted):
            for measured in batch:
                decoded, done = measured.decoded, done + 1
                if isinstance(decoded, Skipped):
                    yield decoded
                    continue
                result = self.judge.judge(decoded, measured, levels)
                if views is not None:
                    result = views.write(result, decoded, measured, levels.region)
                if self.on_image is not None:
                    self.on_image(result, ImageViews.of(self.judge.model, decoded, measured))
                yield result
            self.on_progress(Progress("scoring", done, total))

    def report(self, files: Sequence[ImageFile], model: ModelReference) -> ScoreReport:
        """Score and rank images, the most anomalous first.

        Raises
        ------
        InputError
            When none of the images can be read.
        """
        scored: list[ImageScore] = []
        skipped: list[Skipped] = []
        for outcome in self.stream(files):
            if isinstance(outcome, Skipped):
                skipped.append(outcome)
            else:
                scored.append(outcome)
        if not scored:
            raise nothing_readable(skipped)
        ordered, request = ranked(scored), self.request
        anomalous = sum(image.verdict == "anomalous" for image in ordered)
        return ScoreReport(
            model=model,
            score=request.score,
            mapping=request.inversion.mapping,
            search=searched(request.inversion),
            threshold=self.judge.threshold(request),
            counts={"scored": len(ordered), "anomalous": anomalous, "skipped": len(skipped)},
            images=tuple(ordered),
            skipped=tuple(skipped),
            warning=health.of_scores(len(ordered), anomalous),
        )
