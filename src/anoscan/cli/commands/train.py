"""The command ``anoscan train``.

Settings of the --config file replace defaults, and options that were given replace both.
"""

from __future__ import annotations

import dataclasses
import json
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from anoscan.cli.asking import Yes, ask_before, taken_back
from anoscan.cli.completion import among
from anoscan.cli.options import (
    OUTPUT,
    Device,
    Every,
    Force,
    HelpAll,
    Json,
    Precision,
    Quiet,
    Workers,
    finish,
    option,
)
from anoscan.cli.settings import given_settings, with_settings
from anoscan.cli.together import leads, together
from anoscan.core.config import IMAGES, MODEL, TrainConfig, decided
from anoscan.core.errors import InputError, TrainingInterrupted, UsageError
from anoscan.core.files import check_writable
from anoscan.core.launch import launched

if TYPE_CHECKING:
    from anoscan.cli.output import Output
    from anoscan.detector import Detector


@with_settings
def train(
    images: Annotated[
        list[Path],
        typer.Argument(
            metavar="IMAGES",
            help="Folders (searched recursively) or files of normal images; of a folder laid "
            "out like MVTec AD, only train/good.",
        ),
    ],
    name: Annotated[
        str | None,
        option(help="Save the model under this name.", metavar="NAME", default="the folder's"),
    ] = None,
    roi: Annotated[
        str | None,
        option(
            help="Leave out what is black in this mask, which is stretched over the images, here "
            "and in score; auto leaves out borders that are constant in all images.",
            metavar="auto|MASK",
            panel=IMAGES,
        ),
    ] = None,
    every: Every = 1,
    config_file: Annotated[
        Path | None,
        option(
            "--config",
            help="Read settings from this JSON file, or from what models show --json or --dry-run "
            "print; options given here come first.",
            metavar="FILE",
        ),
    ] = None,
    clean_report: Annotated[
        Path | None,
        option(
            help="Write all images there as JSON, those most likely to be anomalies first.",
            metavar="FILE",
            panel=OUTPUT,
        ),
    ] = None,
    drop_suspects: Annotated[
        bool,
        option(
            "--drop-suspects",
            help="Fit statistics of normal images without the most suspect fifth of the images.",
        ),
    ] = False,
    resume: Annotated[bool, option("--resume", help="Go on with an interrupted training.")] = False,
    redo: Annotated[
        str | None,
        option(
            help="Train only this stage of the model again, on the same images, and replace it: "
            "where reconstructions are unusable.",
            metavar="encoder",
            complete=among(["encoder"]),
        ),
    ] = None,
    force: Force = False,
    yes: Yes = False,
    backbone_weights: Annotated[
        Path | None,
        option(
            help="Weights of --backbone, as torch.save writes them; by default those of the extra "
            "imagenet, or of torchvision, which may fetch them.",
            metavar="FILE",
            panel=MODEL,
        ),
    ] = None,
    dry_run: Annotated[
        bool, option("--dry-run", help="Print the resolved settings as JSON and stop.")
    ] = False,
    tensorboard: Annotated[
        Path | None,
        option(
            help="Also write losses and pictures for TensorBoard there.",
            metavar="DIR",
            panel=OUTPUT,
        ),
    ] = None,
    device: Device = "auto",
    precision: Precision = "auto",
    workers: Workers = None,
    as_json: Json = False,
    quiet: Quiet = False,
    help_all: HelpAll = False,
    **settings: Any,
) -> None:
    """Learn what normal looks like from a folder of normal images."""
    chosen = TrainConfig.from_dict(_merged(settings_of(config_file), given_settings(settings)))
    from anoscan.cli.output import Output

    output = Output(as_json=as_json, quiet=quiet)
    machine: dict[str, Any] = {"device": device, "precision": precision, "workers": workers}
    if chosen.patches is not None and (drop_suspects or clean_report is not None):
        option = "--drop-suspects" if drop_suspects else "--clean-report"
        raise UsageError(
            f"{option} does not go with --patches: suspects are looked for among whole images."
        )
    if dry_run and redo is not None:
        raise UsageError("--redo does not go with --dry-run: it takes the settings of the model.")
    if dry_run:
        if leads():
            _dry_run(
                images, chosen, machine, output, name=name, resume=resume, roi=roi, every=every
            )
        return
    with together(device) as machine["device"]:
        if force or redo is not None:
            _ask(images, name, yes)
        if clean_report is not None:
            check_writable(clean_report, "--clean-report")
        detector = _train(
            output,
            images,
            config=chosen,
            name=name,
            force=force,
            resume=resume,
            tensorboard=tensorboard,
            clean_report=clean_report,
            drop_suspects=drop_suspects,
            roi=roi,
            redo=redo,
            every=every,
            backbone_weights=backbone_weights,
            **machine,
        )
    if detector.report is None:
        raise RuntimeError("training gives a report")
    output.emit(detector.report)
    output.note(f"next: anoscan score QUERIES --model {shlex.quote(detector.reference.name)}")
    if launched() is None:
        finish(output, detector.report.images.skipped)
    else:  # torchrun knows success and failure only
        output.skipped(detector.report.images.skipped)


def _ask(images: list[Path], name: str | None, yes: bool) -> None:
    from anoscan.model import names, store

    path = store.path_for(name or names.name_for(images[0]))
    ask_before(f"This replaces the model {path.stem}. {taken_back(path)}", path, yes)


def _train(
    output: Output,
    images: list[Path],
    clean_report: Path | None,
    drop_suspects: bool,
    **options: Any,
) -> Detector:
    from anoscan.cli.commands.suspects import train_and_rank
    from anoscan.detector import Detector

    with output.progress() as on_progress:
        try:
            if clean_report is None and not drop_suspects:
                return Detector.train(images, on_progress=on_progress, **options)
            detector, report = train_and_rank(
                images, drop=drop_suspects, on_progress=on_progress, **options
            )
            if clean_report is not None:
                output.save(report, clean_report)
            return detector
        except TrainingInterrupted as error:
            if options["redo"]:
                stopped = "training was stopped; the model is as it was."
                raise TrainingInterrupted(stopped) from error
            raise resumable(error) from None


def resumable(error: TrainingInterrupted) -> TrainingInterrupted:
    """Return the error that says how to go on with the training that this command began."""
    arguments = [argument for argument in sys.argv[1:] if argument != "--resume"]
    command = shlex.join(["anoscan", *arguments, "--resume"])
    how = "" if launched() is None else " the same torchrun command and --resume, or one process"
    return TrainingInterrupted(error.message, hint=f"Go on with{how}: {command}")


def settings_of(path: Path | None) -> dict[str, Any]:
    """Read settings from a JSON object, or from the object under its key ``config``.

    Raises
    ------
    InputError
        When the file cannot be read, or holds no JSON object.
    UsageError
        For a setting that does not exist or is out of range.
    """
    if path is None:
        return {}
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"--config {path}: {error.strerror or error}.") from error
    except (ValueError, RecursionError) as error:
        raise InputError(f"--config {path} is not JSON: {error}.") from error
    if isinstance(values, dict) and isinstance(values.get("config"), dict):
        values = values["config"]
    if not isinstance(values, dict):
        raise InputError(f"--config {path} must hold one JSON object of settings.")
    try:
        TrainConfig.from_dict(values)
    except UsageError as error:
        raise UsageError(f"--config {path}: {error.message}", hint=error.hint) from error
    return values


def _merged(kept: dict[str, Any], given: dict[str, Any]) -> dict[str, Any]:
    """Return settings of a file, replaced by those that were given.

    A model's file also holds values that followed from its choices. Where a choice changes, such
    values are decided again; values that a user chose stay.
    """
    before = TrainConfig.from_dict(kept)
    changed = {name for name, value in given.items() if value != getattr(before, name)}
    follows = {
        "images_shown": {"objective"},
        "learning_rate": {"objective"},
        "rotation_images_shown": {"images_shown", "objective"},
        "encoder_images_shown": {"images_shown", "objective", "mapping"},
        "reconstruction_images_shown": {"images_shown", "objective", "mapping"},
    }
    was = decided(before)
    was["images_shown"] = decided(dataclasses.replace(before, images_shown=None))["images_shown"]
    anew = {name for name in follows if follows[name] & changed and kept.get(name) == was[name]}
    return {name: value for name, value in kept.items() if name not in anew} | given


def _dry_run(
    paths: list[Path],
    chosen: TrainConfig,
    machine: dict[str, Any],
    output: Output,
    *,
    name: str | None,
    resume: bool,
    roi: str | None,
    every: int,
) -> None:
    from anoscan.core.runtime import Runtime
    from anoscan.dataset.inspection import inspect
    from anoscan.dataset.split import check_count
    from anoscan.images import masks
    from anoscan.images.files import every_nth, find
    from anoscan.images.layout import training_paths
    from anoscan.model import names, store
    from anoscan.training.checkpoint import Checkpoint
    from anoscan.training.learn import resolve

    # Refuse what the training would refuse, except a name that is taken. A user may ask about the
    # settings of that very model.
    name = names.check_name(name or names.name_for(paths[0]))
    if resume:
        Checkpoint.check(store.checkpoint_path(name))
    runtime = Runtime.resolve(**machine)
    files = every_nth(find(training_paths(paths)[0]), every)
    masks.chosen(roi, files, workers=runtime.workers, seed=chosen.seed, channels=chosen.channels)
    inspection = inspect(files, chosen, runtime.workers)
    check_count(inspection.inspected)
    document = {
        "schema": "anoscan.config/1",
        "config": resolve(chosen, inspection).to_dict(),
        "images_found": len(files),
        "device": runtime.device.type,
        "precision": runtime.precision,
    }
    output.document(document)
