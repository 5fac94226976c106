"""The command ``anoscan drift``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from anoscan.cli.options import Device, Json, Named, Quiet, Workers, finish, load
from anoscan.core.errors import ExitCode


def drift(
    model: Named,
    images: Annotated[
        list[Path],
        typer.Argument(metavar="IMAGES", help="Folders or files of recent, mostly normal images."),
    ],
    device: Device = "auto",
    workers: Workers = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Say whether a model still fits a batch of recent images. Exit code 5 when it does not.

    Example: anoscan drift bolts ./yesterday
    """
    from anoscan.cli.output import Output
    from anoscan.evaluation import drift as job
    from anoscan.model.judge import Judge

    output = Output(as_json=as_json, quiet=quiet)
    detector = load(model, device, workers, None, output)
    with output.progress() as on_progress:
        judge = Judge(detector.model, detector.runtime)
        report = job.compare(judge, detector.reference, images, on_progress)
    output.emit(report)
    if not report.fits:
        output.skipped(report.skipped)
        raise typer.Exit(ExitCode.DRIFT)
    finish(output, report.skipped)
