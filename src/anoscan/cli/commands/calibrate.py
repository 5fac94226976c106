"""The command ``anoscan calibrate``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from anoscan.cli.asking import Yes, ask_before, taken_back
from anoscan.cli.options import Device, Force, Json, Named, Quiet, Workers, finish, load, option
from anoscan.cli.settings import rate_named
from anoscan.core.errors import UsageError


def calibrate(
    model: Named,
    images: Annotated[
        list[Path] | None,
        typer.Argument(
            metavar="IMAGES", help="Folders or files of new normal images, not trained on."
        ),
    ] = None,
    false_alarm_rate: Annotated[
        str | None,
        option(
            help="Let the model call about this share of normal images anomalous from now on, such "
            "as 0.01 or 1%; auto lets the number of calibration images decide.",
            metavar="auto|SHARE",
            default="as it was",
        ),
    ] = None,
    labels: Annotated[
        Path | None,
        option(
            help="Let the normal images of this CSV join the calibration, such as false alarms "
            "that were marked in a report; its anomalies only show what is found. With --miss-cost "
            "or --target-recall: choose the rate by these labels instead.",
            metavar="FILE",
        ),
    ] = None,
    miss_cost: Annotated[
        float | None,
        option(
            help="Choose the rate by labels: a missed anomaly costs as much as X false alarms.",
            metavar="X",
        ),
    ] = None,
    target_recall: Annotated[
        float | None,
        option(
            help="Choose the rate by labels: this share of the anomalies is to be found.",
            metavar="SHARE",
        ),
    ] = None,
    name: Annotated[
        str | None,
        option(
            help="Save the model under this name.", metavar="NAME", default="the model is changed"
        ),
    ] = None,
    force: Force = False,
    yes: Yes = False,
    device: Device = "auto",
    workers: Workers = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Set the threshold of a model anew, without training.

    It is set by normal images that the model was not trained on: those of a new camera, say, or of
    a new batch of slides.

    Example: anoscan calibrate bolts ./new_normals
    """
    if not images and labels is None and false_alarm_rate is None:
        if miss_cost is None and target_recall is None:
            raise UsageError("calibrate needs IMAGES, --labels or --false-alarm-rate.")
        raise UsageError("--miss-cost and --target-recall need --labels FILE.")
    from anoscan.cli.output import Output
    from anoscan.evaluation.recalibrate import Target
    from anoscan.model import store

    target = Target(rate_named(false_alarm_rate), labels, miss_cost, target_recall)
    if name is None:
        path, change = store.resolve(model), f"This changes the model {model}."
    else:
        path, change = store.path_for(name), f"This replaces the model {name}."
    if name is None or force:
        ask_before(f"{change} {taken_back(path)}", path, yes)
    output = Output(as_json=as_json, quiet=quiet)
    detector = load(model, device, workers, None, output)
    with output.progress() as on_progress:
        report = detector.calibrate(
            images or [], target, name=name, force=force, on_progress=on_progress
        )
    if report.warning:
        output.warn(report.warning)
    if report.review is not None and report.review.warning:
        output.caution(report.review.warning)
    if report.threshold.warning:
        output.caution(report.threshold.warning)
    output.emit(report)
    finish(output, report.skipped)
