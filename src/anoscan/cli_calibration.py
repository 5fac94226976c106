"""The commands that look after models and their images: ``calibrate``, ``drift``, ``suspects``."""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from anoscan import config
from anoscan.errors import ExitCode, UsageError
from anoscan.options import Device, Force, Json, Quiet, Workers, finish, option

if TYPE_CHECKING:
    from anoscan.detector import Detector
    from anoscan.training import OnProgress
    from anoscan.upkeep import SuspectsReport

Named = Annotated[str, typer.Argument(metavar="MODEL", help="Name or path of a model.")]


def calibrate(
    model: Named,
    images: Annotated[
        list[Path] | None,
        typer.Argument(
            metavar="IMAGES", help="Folders or files of new normal images, not trained on."
        ),
    ] = None,
    false_alarm_rate: Annotated[
        float | None,
        option(help="Of the model's verdicts from now on.", metavar="SHARE", default="as it was"),
    ] = None,
    labels: Annotated[
        Path | None,
        option(
            help="CSV with the header path,label, for --miss-cost or --target-recall.",
            metavar="FILE",
        ),
    ] = None,
    miss_cost: Annotated[
        float | None,
        option(
            help="Uses labels: a missed anomaly costs as much as so many false alarms.",
            metavar="X",
        ),
    ] = None,
    target_recall: Annotated[
        float | None,
        option(help="Uses labels: share of the labelled anomalies to be found.", metavar="SHARE"),
    ] = None,
    name: Annotated[
        str | None,
        option(help="Save under this name.", metavar="NAME", default="the model is changed"),
    ] = None,
    force: Force = False,
    device: Device = "auto",
    workers: Workers = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Set a model's scales and threshold anew, without training.

    From normal images that it was not trained on: of a new camera, or a new batch of slides.

    Example: anoscan calibrate bolts ./new_normals
    """
    if not images and labels is None and false_alarm_rate is None:
        if miss_cost is None and target_recall is None:
            raise UsageError("calibrate needs IMAGES, --labels or --false-alarm-rate.")
        raise UsageError("--miss-cost and --target-recall need --labels FILE.")
    from anoscan.detector import Detector
    from anoscan.output import Output
    from anoscan.recalibration import Target

    target = Target(false_alarm_rate, labels, miss_cost, target_recall)
    output = Output(as_json=as_json, quiet=quiet)
    detector = Detector.load(model, device=device, workers=workers)
    with output.progress() as on_progress:
        report = detector.calibrate(
            images or [], target, name=name, force=force, on_progress=on_progress
        )
    for warning in filter(None, (report.warning, report.threshold.warning)):
        output.warn(warning)
    output.emit(report)
    finish(output, report.skipped)


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
    from anoscan import drift as job
    from anoscan.detector import Detector
    from anoscan.judgement import Judge
    from anoscan.output import Output

    output = Output(as_json=as_json, quiet=quiet)
    detector = Detector.load(model, device=device, workers=workers)
    with output.progress() as on_progress:
        judge = Judge(detector.model, detector.runtime)
        report = job.compare(judge, detector.reference, images, on_progress)
    output.emit(report)
    if not report.fits:
        output.skipped(report.skipped)
        raise typer.Exit(ExitCode.DRIFT)
    finish(output, report.skipped)


def suspects(
    images: Annotated[
        list[Path],
        typer.Argument(metavar="IMAGES", help="Folders or files of images taken for normal."),
    ],
    model: Annotated[
        str | None,
        option(
            help="Name or path of a model that was trained on them.",
            metavar="MODEL",
            default="one is trained, and not kept",
        ),
    ] = None,
    images_shown: Annotated[
        int | None,
        option(help="Length of that training.", metavar="N", default=str(config.IMAGES_SHOWN)),
    ] = None,
    seed: Annotated[int, typer.Option(min=0, metavar="N", help="Of that training.")] = 0,
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
    from anoscan import suspects as job
    from anoscan.detector import Detector
    from anoscan.output import Output

    output = Output(as_json=as_json, quiet=quiet)
    with output.progress() as on_progress, tempfile.TemporaryDirectory() as folder:
        if model is None:
            _, report = train_and_rank(
                images,
                drop=False,
                on_progress=on_progress,
                path=Path(folder) / "suspects.safetensors",
                images_shown=images_shown,
                seed=seed,
                device=device,
                workers=workers,
            )
        else:
            detector = Detector.load(model, device=device, workers=workers)
            report = job.rank(
                detector.model, detector.reference, detector.runtime, images, on_progress
            )
    output.emit(report if model else dataclasses.replace(report, model=None))
    finish(output, report.skipped)


def train_and_rank(
    paths: Sequence[str | Path], *, drop: bool, on_progress: OnProgress, **options: Any
) -> tuple[Detector, SuspectsReport]:
    """Train a model and rank its images.

    Parameters
    ----------
    drop : bool
        Fit what counts as usual without the most suspect images.
    paths, options
        As for `Detector.train`.
    """
    from anoscan import labelled
    from anoscan import suspects as job
    from anoscan.detector import Detector

    detector = Detector.train(paths, on_progress=on_progress, drop_suspects=drop, **options)
    reference = detector.reference
    if detector.suspicion is not None:
        return detector, job.listed(reference, detector.suspicion)
    # Narrowed here, because the training has said so already.
    narrowed = labelled.training_paths(paths)[0]
    return detector, job.rank(detector.model, reference, detector.runtime, narrowed, on_progress)
