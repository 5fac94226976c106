"""The command ``anoscan eval``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from anoscan.cli.options import (
    OUTPUT,
    Device,
    Json,
    Models,
    Quiet,
    RoiMask,
    Workers,
    finish,
    load,
    option,
    output_of,
)
from anoscan.cli.settings import asked_for, with_request
from anoscan.core.errors import UsageError
from anoscan.core.files import check_writable
from anoscan.scoring.choices import ScoreRequest


@with_request
def evaluate(
    images: Annotated[
        Path | None,
        typer.Argument(
            metavar="IMAGES",
            help="Folder that paths in the CSV are relative to; or a folder laid out like MVTec "
            "AD, or with a folder of good and one of bad images, which needs no CSV. "
            "[default: the CSV's folder]",
        ),
    ] = None,
    labels: Annotated[
        Path | None,
        option(
            help="Read labels from this CSV, whose header is path,label[,mask][,class].",
            metavar="FILE",
        ),
    ] = None,
    masks: Annotated[
        Path | None,
        option(
            help="Measure pixels too, with the masks there: they have the relative paths of the "
            "images, with another suffix or _mask added. [default: the CSV's masks]",
            metavar="DIR",
        ),
    ] = None,
    model: Models = None,
    roi: RoiMask = None,
    plots: Annotated[
        Path | None,
        option(
            help="Draw ROC, precision-recall, histograms and confusion there, as PNG and SVG.",
            metavar="DIR",
            panel=OUTPUT,
        ),
    ] = None,
    report_file: Annotated[
        Path | None,
        option(
            "--report",
            help="Write an HTML page there with all figures and tables, in one file.",
            metavar="FILE",
            panel=OUTPUT,
        ),
    ] = None,
    device: Device = "auto",
    workers: Workers = None,
    as_json: Json = False,
    quiet: Quiet = False,
    **asked: Any,
) -> None:
    """Measure detection on labelled images.

    The AUROC stands beside those of the mean image and PCA.

    Example: anoscan eval --labels labels.csv --masks ./masks
    """
    if labels is None and images is None:
        raise UsageError(
            "eval needs --labels FILE, a CSV with the header path,label; or a folder laid out "
            "like MVTec AD; or one with a folder of good and one of bad images."
        )
    how = asked_for(asked)
    request = ScoreRequest.of(**how)
    if plots is not None:
        from anoscan.report import plots as drawing

        drawing.check()
        check_writable(plots, "--plots", folder=True)
    if report_file is not None:
        _check_page(report_file)
    output = output_of(as_json, quiet)
    names: list[str | None] = [*model] if model else [None]
    detector, *others = [load(name, device, workers, roi, output) for name in names]
    if hint := detector.hint(request):
        output.note(hint)
    with output.progress() as on_progress:
        report = detector.evaluate(
            labels,
            images,
            masks=masks,
            against=others,
            on_progress=on_progress,
            **how,
        )
    if report.warning:
        output.caution(report.warning)
    output.emit(report)
    if plots is not None:
        drawing.write(report, plots)
        output.note(f"plots: {plots}")
    if report_file is not None:
        from anoscan.report import eval_page

        eval_page.write(report, report_file, str(labels or images))
        output.note(f"report: {report_file}")
    masks_skipped = report.pixel.skipped if report.pixel else ()
    finish(output, [*report.images.skipped, *masks_skipped])


def _check_page(page: Path) -> None:
    """Refuse a page that cannot be written before any image is scored."""
    from anoscan.report import plots
    from anoscan.report.templating import check_page

    check_page(page)
    plots.check("--report")
    check_writable(page, "--report")
