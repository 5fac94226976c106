"""The command ``anoscan suspects``."""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from anoscan.cli.completion import models
from anoscan.cli.options import Device, Json, Quiet, Workers, counted, finish, load, option
from anoscan.core import config
from anoscan.core.errors import UsageError
from anoscan.core.files import temporary_folder

if TYPE_CHECKING:
    from anoscan.core.progress import OnProgress
    from anoscan.core.results import SuspectsReport
    from anoscan.detector import Detector


def suspects(
    images: Annotated[
        list[Path],
        typer.Argument(metavar="IMAGES", help="Folders or files of images taken for normal."),
    ],
    model: Annotated[
        str | None,
        option(
            help="Use this model, which was trained on the images.",
            metavar="MODEL",
            complete=models,
            default="one is trained, and not kept",
        ),
    ] = None,
    images_shown: Annotated[
        int | None,
        option(
            help="Length of the GAN stage of that training.",
            metavar="N",
            parser=counted,
            default=str(config.IMAGES_SHOWN),
        ),
    ] = None,
    seed: Annotated[int, typer.Option(min=0, metavar="N", help="Seed of that training.")] = 0,
    device: Device = "auto",
    workers: Workers = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Rank images taken for normal: the likeliest anomalies first.

    Example: anoscan suspects ./normal_imgs --json
    """
    if model is not None and images_shown is not None:
        raise UsageError("--images-shown is for a training: not with --model.")
    from anoscan.cli.output import Output
    from anoscan.training import suspects as job

    output = Output(as_json=as_json, quiet=quiet)
    beside = Path(tempfile.gettempdir())
    with output.progress() as on_progress, temporary_folder(beside) as folder:
        if model is None:
            _, report = train_and_rank(
                images,
                drop=False,
                on_progress=on_progress,
                path=folder / "suspects.safetensors",
                images_shown=images_shown,
                seed=seed,
                device=device,
                workers=workers,
            )
        else:
            detector = load(model, device, workers, None, output)
            report = job.rank(
                detector.model, detector.reference, detector.runtime, images, on_progress
            )
    output.emit(report if model else dataclasses.replace(report, model=None))
    finish(output, report.skipped)


def train_and_rank(
    paths: Sequence[str | Path], *, drop: bool, on_progress: OnProgress, **options: Any
) -> tuple[Detector, SuspectsReport]:
    """Train a model and rank its images; `paths` and `options` are those of `Detector.train`.

    With `drop`, what counts as normal is fitted without the most suspect images.
    """
    from anoscan.detector import Detector
    from anoscan.images.layout import training_paths
    from anoscan.training import suspects as job

    detector = Detector.train(paths, on_progress=on_progress, drop_suspects=drop, **options)
    reference = detector.reference
    if detector.suspicion is not None:
        return detector, job.listed(reference, detector.suspicion)
    # `training_paths` is called here, so that `rank` does not repeat the note of the training.
    narrowed = training_paths(paths)[0]
    return detector, job.rank(detector.model, reference, detector.runtime, narrowed, on_progress)
