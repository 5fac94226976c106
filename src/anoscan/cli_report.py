"""Pages: ``score --report`` while images are scored, ``anoscan report`` of saved results."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from anoscan.options import (
    OUTPUT,
    BatchSize,
    Device,
    Model,
    Quiet,
    ReportAssets,
    Workers,
    option,
)

if TYPE_CHECKING:
    from anoscan.detector import Detector
    from anoscan.html_report import HtmlReport
    from anoscan.results import ScoreReport


def page(path: Path | None, images: int, *, assets: bool) -> HtmlReport | nullcontext[None]:
    """The page that a scoring is to fill, to be used with ``with``; nothing without a path."""
    if path is None:
        return nullcontext()
    from anoscan.html_report import HtmlReport

    return HtmlReport(path, images, assets=assets)


def write(page: HtmlReport, report: ScoreReport, detector: Detector) -> None:
    """Finish the page of a scoring."""
    from anoscan import results
    from anoscan.html_report import Background

    background = Background(detector.model.metadata, detector.calibration_scores(report.score))
    page.write(results.to_json(report), background)


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
    model: Model = None,
    batch_size: BatchSize = 64,
    device: Device = "auto",
    workers: Workers = None,
    quiet: Quiet = False,
) -> None:
    """Write a page of saved results: images by score, to be filtered and looked at.

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
            saved.draw(document, detector, made, batch_size, on_progress, output.warn)
        made.write(document, saved.background(document, detector))
    output.text(target.as_posix())
