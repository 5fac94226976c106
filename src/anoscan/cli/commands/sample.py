"""The command ``anoscan sample``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from anoscan.cli.completion import models
from anoscan.cli.options import (
    DEFAULT_MODEL,
    OUTPUT,
    Device,
    Json,
    Quiet,
    Workers,
    finish,
    load,
    option,
)

FOLDER = "anoscan-samples"


def sample(
    model: Annotated[
        str | None,
        typer.Argument(
            metavar="MODEL",
            help=f"Name or path of a model. [default: {DEFAULT_MODEL}]",
            autocompletion=models,
        ),
    ] = None,
    folder: Annotated[
        Path,
        option(
            "--output", help="Write the PNGs there.", metavar="DIR", default=FOLDER, panel=OUTPUT
        ),
    ] = Path(FOLDER),
    n: Annotated[
        int, option("--n", help="Draw so many generated images.", metavar="N", default=64)
    ] = 64,
    between: Annotated[
        tuple[Path, Path] | None,
        option(help="Also draw the way from one of these images to the other.", metavar="A B"),
    ] = None,
    turing: Annotated[
        Path | None,
        option(
            help="Also draw a shuffled sheet of real images from there and of generated ones, with "
            "a CSV that says which is which.",
            metavar="IMAGES",
        ),
    ] = None,
    seed: Annotated[int, typer.Option(min=0, metavar="N", help="Seed of all random draws.")] = 0,
    device: Device = "auto",
    workers: Workers = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Draw what a model takes for normal.

    That is generated images, ways between them, and a sheet of real and generated images that a
    person can try to distinguish.

    Example: anoscan sample bolts --turing ./normal_imgs
    """
    from anoscan.cli.output import Output

    output = Output(as_json=as_json, quiet=quiet)
    detector = load(model, device, workers, None, output)
    report = detector.sample(folder, n=n, seed=seed, between=between, turing=turing)
    output.emit(report)
    finish(output, report.skipped)
