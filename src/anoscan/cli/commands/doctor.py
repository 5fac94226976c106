"""The command ``anoscan doctor``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from anoscan.cli.commands import train
from anoscan.cli.options import Device, Json, Precision, Workers, option, output_of
from anoscan.cli.settings import auto_int
from anoscan.core.errors import AnoscanError, UsageError


def doctor(
    images: Annotated[
        list[Path] | None,
        typer.Argument(
            metavar="IMAGES", help="Folders of images, to see what training on them would mean."
        ),
    ] = None,
    size: Annotated[
        str | None,
        option(help="Side of the images in that training, as for train.", metavar="auto|N"),
    ] = None,
    config_file: Annotated[
        Path | None,
        option(
            "--config",
            help="Settings of that training, as for train; patches and folds cannot be tried.",
            metavar="FILE",
        ),
    ] = None,
    device: Device = "auto",
    precision: Precision = "auto",
    workers: Workers = None,
    as_json: Json = False,
) -> None:
    """Say what this machine can do, and what a training would take."""
    from anoscan.training import doctor as practice

    output = output_of(as_json, False)
    given = {} if size is None else {"size": auto_int("--size", size)}
    settings = train.settings_of(config_file) | given
    if settings and not images:
        raise UsageError("--size and --config are of a training: name its IMAGES too.")
    config = practice.triable(settings)
    if images:
        output.note("reading the images, and trying a few steps of training on them ...")
    report = practice.examine(
        images or [], config, device=device, precision=precision, workers=workers
    )
    output.emit(report)
    failed = [check.message for check in report.checks if check.verdict == "fail"]
    if failed:
        raise AnoscanError(" ".join(failed))
