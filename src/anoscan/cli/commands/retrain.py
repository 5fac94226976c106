"""The command ``anoscan retrain``: the same settings on new images, old model against new."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from anoscan.cli.asking import Yes, ask_before, taken_back
from anoscan.cli.commands.train import resumable
from anoscan.cli.options import (
    Device,
    Force,
    Json,
    Named,
    Precision,
    Quiet,
    Workers,
    finish,
    load,
    option,
    output_of,
)
from anoscan.core.errors import TrainingInterrupted

if TYPE_CHECKING:
    from anoscan.core.progress import OnProgress
    from anoscan.core.results import RetrainReport
    from anoscan.detector import Detector


def retrain(
    model: Named,
    images: Annotated[
        list[Path],
        typer.Argument(metavar="IMAGES", help="Folders or files of normal images, as for train."),
    ],
    labels: Annotated[
        Path | None,
        option(
            help="Also compare both models on the labelled images of this CSV, as eval does.",
            metavar="FILE",
        ),
    ] = None,
    name: Annotated[
        str | None,
        option(
            help="Save the new model under this name.",
            metavar="NAME",
            default="it replaces the old one",
        ),
    ] = None,
    resume: Annotated[bool, option("--resume", help="Go on with an interrupted training.")] = False,
    force: Force = False,
    yes: Yes = False,
    device: Device = "auto",
    precision: Precision = "auto",
    workers: Workers = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Train a model again on new images, and compare old and new.

    Its settings stay. Both are measured on images that the new model did not learn from.

    Example: anoscan retrain bolts ./this_year --labels labels.csv
    """
    from anoscan.evaluation.labels import gather
    from anoscan.model import names, store

    path = store.resolve(model) if name is None else store.path_for(name)
    if name is None or force:
        ask_before(f"This replaces the model {path.stem}. {taken_back(path)}", path, yes)
    if labels is not None:
        gather(labels, None, None)  # labels that cannot be used must not wait for the training
    output = output_of(as_json, quiet)
    old = load(model, device, workers, None, output)
    with output.progress() as on_progress:
        try:
            new = type(old).train(
                images,
                name=names.made_of(path.name),
                path=path,
                force=force or name is None,
                resume=resume,
                device=device,
                precision=precision,
                workers=workers,
                like=old.model,
                on_progress=on_progress,
            )
        except TrainingInterrupted as error:
            raise resumable(error) from None
        report = _report(old, new, labels, name is None, on_progress)
    output.emit(report)
    if report.warning is not None:
        back = f" {taken_back(path)[0].upper()}{taken_back(path)[1:]}" * report.replaced
        output.caution(report.warning + back)
    elif report.replaced:
        output.note(f"the old model is kept: {taken_back(path)}")
    finish(output, report.train.images.skipped)


def _report(
    old: Detector, new: Detector, labels: Path | None, replaced: bool, on_progress: OnProgress
) -> RetrainReport:
    from anoscan.core.results import RetrainReport
    from anoscan.evaluation import succession
    from anoscan.evaluation.evaluate import Subject
    from anoscan.model.judge import Judge

    if new.report is None:
        raise RuntimeError("training gives a report")
    subjects = [Subject(Judge(one.model, one.runtime), one.reference) for one in (old, new)]
    before, after = (
        succession.on_held_out(subject, new.held_out, on_progress) for subject in subjects
    )
    labelled = None
    if labels is not None:
        labelled = old.evaluate(labels, against=[new], on_progress=on_progress).comparison
    return RetrainReport(
        train=new.report,
        replaced=replaced,
        held_out=len(new.held_out),
        old=before,
        new=after,
        labelled=labelled,
        warning=succession.caveat(labelled),
    )
