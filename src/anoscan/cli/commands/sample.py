"""The command ``anoscan sample``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from anoscan.cli.options import OUTPUT, Device, Json, Quiet, Workers, finish, option

FOLDER = "anoscan-samples"


def sample(
    model: Annotated[
        str | None,
        typer.Argument(metavar="MODEL", help="Name or path. [default: the one trained last]"),
    ] = None,
    folder: Annotated[
        Path,
        option("--output", help="Where the PNGs go.", metavar="DIR", default=FOLDER, panel=OUTPUT),
    ] = Path(FOLDER),
    n: Annotated[int, option("--n", help="Generated images.", metavar="N", default=64)] = 64,
    between: Annotated[
        tuple[Path, Path] | None,
        option(help="Two images: also draw the way from one to the other.", metavar="A B"),
    ] = None,
    turing: Annotated[
        Path | None,
        option(
            help="Folder of real images: also draw a sheet of real and generated ones, shuffled, "
            "with a CSV that says which is which.",
            metavar="IMAGES",
        ),
    ] = None,
    seed: Annotated[int, typer.Option(min=0, metavar="N", help="Of all random draws.")] = 0,
    device: Device = "auto",
    workers: Workers = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Draw what a model takes for normal.

    Generated images, ways between them, and a sheet of real and generated ones to tell apart.

    Example: anoscan sample bolts --turing ./normal_imgs
    """
    from anoscan.cli.output import Output
    from anoscan.detector import Detector

    output = Output(as_json=as_json, quiet=quiet)
    detector = Detector.load(model, device=device, workers=workers)
    if model is None:
        output.note(f"using the model trained last: {detector.reference.name}")
    report = detector.sample(folder, n=n, seed=seed, between=between, turing=turing)
    output.emit(report)
    finish(output, report.skipped)
