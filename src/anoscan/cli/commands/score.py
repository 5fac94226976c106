"""The command ``anoscan score``: print the ranking, and write pictures, maps and the page."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Self

import typer

from anoscan.cli import queries
from anoscan.cli.options import (
    OUTPUT,
    SHOWN,
    TABLE_ROWS,
    Device,
    Every,
    Json,
    Maps,
    MapsFormat,
    Model,
    Quiet,
    Report,
    ReportAssets,
    RoiMask,
    Workers,
    finish,
    first_images,
    load,
    map_files,
    option,
    output_of,
)
from anoscan.cli.settings import asked_for, with_request
from anoscan.core.errors import UsageError
from anoscan.scoring.choices import ScoreRequest

if TYPE_CHECKING:
    from anoscan.cli.output import Output
    from anoscan.core.results import ImageScore, ScoreReport, Skipped
    from anoscan.detector import Detector
    from anoscan.report.views import ImageViews, OnImage


@with_request
def score(
    paths: Annotated[
        list[str],
        typer.Argument(
            metavar="PATH",
            help="Folders and files; - reads a list from stdin, one a line or with NUL after each.",
        ),
    ],
    model: Model = None,
    top: Annotated[
        int | None,
        typer.Option(
            min=1,
            metavar="N",
            help=f"List only the N most anomalous. [default: {TABLE_ROWS} in a table, all in JSON]",
        ),
    ] = None,
    roi: RoiMask = None,
    every: Every = 1,
    allow_empty: Annotated[
        bool, option("--allow-empty", help="Take an empty list on stdin for no fault.")
    ] = False,
    fail_on_anomaly: Annotated[
        bool, option("--fail-on-anomaly", help="Exit with 4 when an image is anomalous.")
    ] = False,
    residuals: Annotated[
        Path | None,
        option(
            metavar="DIR",
            help="Write a PNG of query, reconstruction and residual of each image there.",
            panel=OUTPUT,
        ),
    ] = None,
    report_file: Report = None,
    report_assets: ReportAssets = False,
    show: Annotated[
        bool,
        option(
            "--show",
            help=f"Show the most anomalous images in the terminal: --top, or {SHOWN}.",
            panel=OUTPUT,
        ),
    ] = False,
    nearest: Annotated[
        int,
        typer.Option(
            min=0,
            metavar="K",
            help="Name the K training images that are most like each query, and draw them with "
            "--residuals; the model needs train --keep-thumbnails.",
        ),
    ] = 0,
    maps: Maps = None,
    maps_format: MapsFormat = None,
    device: Device = "auto",
    workers: Workers = None,
    as_json: Json = False,
    as_jsonl: Annotated[
        bool,
        option("--jsonl", help="Print one JSON object an image, as it is scored.", panel=OUTPUT),
    ] = False,
    as_csv: Annotated[
        bool, option("--csv", help="Print one CSV row an image, as it is scored.", panel=OUTPUT)
    ] = False,
    quiet: Quiet = False,
    **asked: Any,
) -> None:
    """Rank images by how anomalous they are. A higher score is more anomalous.

    Example: anoscan score ./queries --top 20 --residuals ./pictures
    """
    streams = as_jsonl or as_csv
    if as_json + as_jsonl + as_csv > 1:
        raise UsageError("--json, --jsonl and --csv exclude each other.")
    if top is not None and streams:
        raise UsageError("--top needs all images: not with --jsonl or --csv.")
    if show and (as_json or streams):
        raise UsageError("--show goes with the table: not with --json, --jsonl or --csv.")
    if report_file is not None and streams:
        raise UsageError("--report needs all images: not with --jsonl or --csv.")
    if report_assets and report_file is None:
        raise UsageError("--report-assets needs --report.")
    request = ScoreRequest.of(nearest=nearest, **asked_for(asked))
    wanted_maps = map_files(maps, maps_format)
    output = output_of(as_json, quiet)
    pages_folder = beside(report_file) if report_file and report_assets else None
    written = [folder for folder in (residuals, maps, pages_folder) if folder is not None]
    files, notes = queries.gather(paths, written, allow_empty=allow_empty, every=every)
    if not streams:
        extras = {"residuals": residuals, "maps": maps, "report": report_file}
        kept = [name for name, value in extras.items() if value is not None]
        if warning := memory_warning(len(files), kept, nearest):
            output.warn(warning)
    for note in notes:
        output.note(note)
    detector = load(model, device, workers, roi, output)
    if warning := detector.threshold(request).warning:
        output.caution(warning)
    if hint := detector.hint(request):
        output.note(hint)
    views = detector.view_files(residuals, wanted_maps)
    shown = show * (top or SHOWN)
    with (
        ScoringViewers(len(files), report_file, assets=report_assets, show=shown) as viewers,
        output.progress(streams=streams) as on_progress,
    ):
        if streams:
            outcomes = detector.stream(files, request, views, on_progress=on_progress)
            terms = detector.score_terms(request.score)
            anomalous, skipped = _stream(outcomes, output, as_csv, terms)
        else:
            report = detector.score_files(
                files, request, views, on_progress=on_progress, on_image=viewers.on_image
            )
            anomalous, skipped = report.counts["anomalous"], list(report.skipped)
            viewers.write(report, detector)
    if not streams:
        output.emit(first_images(report, top, None if as_json else TABLE_ROWS))
        if report.warning:
            output.caution(report.warning)
    if residuals is not None:
        output.note(f"pictures: {residuals}")
    viewers.show(output)
    if maps is not None:
        output.note(f"maps: {maps}")
    finish(output, skipped, anomalous=anomalous if fail_on_anomaly else 0, listed=streams)


def _stream(
    outcomes: Iterator[ImageScore | Skipped], output: Output, as_csv: bool, terms: tuple[str, ...]
) -> tuple[int, list[Skipped]]:
    from anoscan.cli.output import CsvWriter
    from anoscan.core.results import Skipped
    from anoscan.model.judge import nothing_readable

    table = CsvWriter(terms)
    write = table.write if as_csv else output.line
    scored, anomalous, skipped = 0, 0, []
    for outcome in outcomes:
        if isinstance(outcome, Skipped):
            output.unreadable(outcome)
            skipped.append(outcome)
            continue
        write(outcome)
        scored += 1
        anomalous += outcome.verdict == "anomalous"
    if skipped and not scored:
        raise nothing_readable(skipped)
    if as_csv:
        table.begin()  # the header stands even where no image follows
    return anomalous, skipped


class ScoringViewers:
    """Collects images while they are scored, for the HTML page and for the terminal.

    Parameters
    ----------
    images : int
        Approximate number of images.
    page : Path, optional
        File of the HTML page.
    assets : bool
        Whether the pictures of the page are kept in a folder beside it.
    show : int
        Number of the most anomalous images to show in the terminal.
    """

    def __init__(self, images: int, page: Path | None, *, assets: bool, show: int) -> None:
        self._page: HtmlReport | None = None
        self._gallery: Gallery | None = None
        if show:
            from anoscan.cli.terminal import Gallery

            self._gallery = Gallery(show)
        if page is not None:
            from anoscan.report.html_page import HtmlReport

            self._page = HtmlReport(page, images, assets=assets)

    @property
    def on_image(self) -> OnImage | None:
        """Function to call with every image; None where there is no page and no terminal."""
        watching = [watch.add for watch in (self._page, self._gallery) if watch is not None]

        def add(image: ImageScore, seen: ImageViews) -> None:
            for watch in watching:
                watch(image, seen)

        return add if watching else None

    def write(self, report: ScoreReport, detector: Detector) -> None:
        """Write the page, if there is one."""
        if self._page is None:
            return
        from anoscan.core import results
        from anoscan.report.html_page import Background

        scores = detector.calibration_scores(report.score)
        self._page.write(results.to_json(report), Background(detector.model.metadata, scores))

    def show(self, output: Output) -> None:
        """Show the pictures in the terminal, and print the path of the page."""
        if self._gallery is not None:
            output.gallery(self._gallery)
        if self._page is not None:
            output.note(f"report: {self._page.path}")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *failure: object) -> None:
        if self._page is not None:
            self._page.close()


# Peak memory of score --json, measured at 30,000 and 60,000 images with paths of 50 characters: the
# program and the model, and for each image its path, its result, and what is written of it. A run
# of 1,000,000 images had its peak at 1.54 GB.
_BYTES, _BYTES_AN_IMAGE, _BYTES_A_NEIGHBOUR = 650_000_000, 890, 200
_BYTES_MORE = {"residuals": 240, "maps": 570, "report": 3_550}
_MOST_BYTES = 2_000_000_000


def memory_warning(images: int, kept: Sequence[str], nearest: int) -> str | None:
    """Return a warning where a ranking may need more than 2 GB of memory, else None.

    `kept` are names of options, of which each image has a path or a picture. `nearest` is the
    number of training images that are named with each image.
    """
    each = _BYTES_AN_IMAGE + sum(_BYTES_MORE[name] for name in kept) + nearest * _BYTES_A_NEIGHBOUR
    if (needed := _BYTES + images * each) <= _MOST_BYTES:
        return None
    return (
        f"to rank {images:,} images takes about {needed / 1e9:.1f} GB of memory. --jsonl and --csv "
        "print each image as it is scored, in little memory."
    )


def beside(page: Path) -> Path:
    """Return the folder of the pictures that are kept beside a page."""
    from anoscan.report.html_page import assets_of

    return assets_of(page)
