"""Where the results of a scoring go: result files, the HTML page, a terminal, a history."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Self

from anoscan.core.errors import AnoscanError, UsageError

if TYPE_CHECKING:
    from anoscan.cli.output import Output
    from anoscan.cli.terminal import Gallery
    from anoscan.core.results import ImageScore, ModelReference, ScoreReport
    from anoscan.detector import Detector
    from anoscan.images.files import ImageFile
    from anoscan.report.alarms import Tally
    from anoscan.report.html_page import HtmlReport
    from anoscan.report.result_files import ResultFiles
    from anoscan.report.views import ImageViews, OnImage


@dataclass(frozen=True)
class Destinations:
    """Files that a scoring writes: result files, one HTML page, and a history that it continues."""

    files: tuple[Path, ...]
    page: Path | None
    history: Path | None

    @classmethod
    def of(cls, report: Path | None, files: Sequence[Path] | None, append: Path | None) -> Self:
        """Sort the values of --report, --output and --append, and see that all can be written.

        Raises
        ------
        UsageError
            When there are two pages, an extension is unknown, the package for a format is missing,
            or a file cannot be written.
        InputError
            When the file of --append is no history.
        """
        if not files and append is None:
            return cls((), report, None)
        from anoscan.report import history, result_files

        given = dict.fromkeys(files or ())
        for path in given:
            result_files.check(path)
        pages = dict.fromkeys(path for path in (report, *given) if path)
        pages = {path: None for path in pages if path == report or result_files.is_page(path)}
        if len(pages) > 1:
            raise UsageError(f"one HTML page a run. Got {' and '.join(map(str, pages))}.")
        if append is not None:
            history.check(append)
        others = tuple(path for path in given if path not in pages)
        return cls(others, next(iter(pages), None), append)

    def record(self, tally: Tally, model: ModelReference, paths: Sequence[str]) -> None:
        """Append a row about a run to the history, if there is one."""
        if self.history is not None:
            from anoscan.report import history

            history.append(self.history, history.run_of(tally, model, "; ".join(paths)))

    def kept(self) -> list[str]:
        """Return the names of what needs memory for each image; see `score.memory_warning`."""
        kept = ["report"] * (self.page is not None)
        return kept + ["coco"] * any(p.name.lower().endswith(".coco.json") for p in self.files)


def first_failure(*steps: Callable[[], None]) -> AnoscanError | None:
    """Take all steps, also after one that fails; return the first failure, or None."""
    failures = []
    for step in steps:
        try:
            step()
        except AnoscanError as error:
            failures.append(error)
    return failures[0] if failures else None


class ScoringViewers:
    """Collects images while they are scored, for result files, the HTML page and the terminal.

    Parameters
    ----------
    files : sequence of ImageFile
        The images that are scored.
    wanted : Destinations
    assets : bool
        Whether the pictures of the page are kept in a folder beside it.
    show : int
        Number of the most anomalous images to show in the terminal.
    """

    def __init__(
        self, files: Sequence[ImageFile], wanted: Destinations, *, assets: bool, show: int
    ) -> None:
        self._files: ResultFiles | None = None
        self._page: HtmlReport | None = None
        self._gallery: Gallery | None = None
        if show:
            from anoscan.cli.terminal import Gallery

            self._gallery = Gallery(show)
        if wanted.files:
            from anoscan.report.result_files import ResultFiles

            self._files = ResultFiles(wanted.files, files)
        if wanted.page is not None:
            from anoscan.report.html_page import HtmlReport

            self._page = HtmlReport(wanted.page, len(files), assets=assets)

    @property
    def on_image(self) -> OnImage | None:
        """Function to call with every image; None where nothing needs more than its result."""
        watching: list[OnImage] = [
            watch.add for watch in (self._page, self._gallery) if watch is not None
        ]
        if self._files is not None and self._files.on_image is not None:
            watching.append(self._files.on_image)

        def add(image: ImageScore, seen: ImageViews) -> None:
            for watch in watching:
                watch(image, seen)

        return add if watching else None

    def write(self, report: ScoreReport, detector: Detector) -> None:
        """Write the result files, if there are any."""
        if self._files is not None:
            from anoscan.model.score_of_terms import Scorer

            scorer = Scorer(detector.model.fitted, detector.model.calibration)
            self._files.write(report, scorer.weights(report.score))

    def write_page(self, report: ScoreReport, detector: Detector, paths: Sequence[str]) -> None:
        """Write the HTML page, if there is one; `paths` are those that were given to score."""
        if self._page is not None:
            from anoscan.core import results
            from anoscan.report.html_page import Background

            scores = detector.calibration_scores(report.score)
            queries = tuple("a list on stdin" if path == "-" else path for path in paths)
            background = Background(detector.model.metadata, scores, queries)
            self._page.write(results.to_json(report), background)

    def show(self, output: Output) -> None:
        """Show the pictures in the terminal, and print the paths of the files."""
        if self._gallery is not None:
            output.gallery(self._gallery)
        for path in self._files.paths if self._files is not None else ():
            output.note(f"results: {path}")
        if self._page is not None:
            output.note(f"report: {self._page.path}")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *failure: object) -> None:
        if self._page is not None:
            self._page.close()
