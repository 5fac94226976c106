"""What is to be looked at: ``score --report`` and ``--show``, and ``anoscan report``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Self

import typer

from anoscan.errors import ExitCode
from anoscan.options import (
    OUTPUT,
    BatchSize,
    Device,
    Quiet,
    ReportAssets,
    Workers,
    option,
)

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


def report(
    source: Annotated[
        str, typer.Argument(metavar="RESULTS", help="What score --json wrote; - for stdin.")
    ],
    path: Annotated[
        Path | None,
        option(
            "--output",
            metavar="FILE",
            help="The page. [default: RESULTS as .html, report.html of stdin]",
            panel=OUTPUT,
        ),
    ] = None,
    assets: ReportAssets = False,
    model: Annotated[
        str | None,
        option(metavar="MODEL", help="Name or path of the model.", default="the results name it"),
    ] = None,
    batch_size: BatchSize = 64,
    device: Device = "auto",
    workers: Workers = None,
    quiet: Quiet = False,
) -> None:
    """Write an HTML page of the results that score --json wrote.

    It shows the images by score, to be filtered and looked at.

    Example: anoscan report results.json
    """
    from anoscan import saved
    from anoscan.html_report import HtmlReport
    from anoscan.output import Output

    output = Output(quiet=quiet)
    document = saved.read(source)
    target = path or Path("report.html" if source == "-" else source).with_suffix(".html")
    detector = saved.detector(document, model, device, workers, output.warn)
    with HtmlReport(target, len(document["images"]), assets=assets) as made:
        with output.progress() as on_progress:
            missing = saved.draw(document, detector, made, batch_size, on_progress, output.warn)
        made.write(document, saved.background(document, detector))
    output.text(target.as_posix())
    if missing:
        raise typer.Exit(ExitCode.SKIPPED)
