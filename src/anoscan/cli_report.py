"""What ``score --report`` and ``score --show`` look at while images are scored."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from anoscan.detector import Detector
    from anoscan.html_report import HtmlReport
    from anoscan.judgement import OnImage
    from anoscan.output import Output
    from anoscan.results import ImageScore, ScoreReport
    from anoscan.seen import Seen
    from anoscan.terminal_pictures import Gallery


class Watch:
    """What looks at images while they are scored: the page, and pictures for the terminal.

    Parameters
    ----------
    images : int
        How many will come, about.
    page : path, optional
        Where the page goes.
    assets : bool
        Keep its pictures beside it.
    show : int
        How many of the most anomalous images the terminal is to show.
    """

    def __init__(self, images: int, page: Path | None, *, assets: bool, show: int) -> None:
        self._page: HtmlReport | None = None
        self._gallery: Gallery | None = None
        if show:
            from anoscan.terminal_pictures import Gallery

            self._gallery = Gallery(show)
        if page is not None:
            from anoscan.html_report import HtmlReport

            self._page = HtmlReport(page, images, assets=assets)

    @property
    def on_image(self) -> OnImage | None:
        """What is to be called with every image; None where nobody looks."""
        watching = [watch.add for watch in (self._page, self._gallery) if watch is not None]

        def add(image: ImageScore, seen: Seen) -> None:
            for watch in watching:
                watch(image, seen)

        return add if watching else None

    def write(self, report: ScoreReport, detector: Detector) -> None:
        """Finish the page."""
        if self._page is None:
            return
        from anoscan import results
        from anoscan.html_report import Background

        scores = detector.calibration_scores(report.score)
        self._page.write(results.to_json(report), Background(detector.model.metadata, scores))

    def show(self, output: Output) -> None:
        """Show pictures, and say where the page is."""
        if self._gallery is not None:
            output.gallery(self._gallery)
        if self._page is not None:
            output.note(f"report: {self._page.path}")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *failure: object) -> None:
        if self._page is not None:
            self._page.close()


def beside(page: Path) -> Path:
    """Folder of the pictures of a page that keeps them beside it."""
    from anoscan.html_report import assets_of

    return assets_of(page)
