"""The command line: declarations, and one call each.

Nothing here imports torch or scikit-learn until a command runs: ``--help`` must answer at once.
"""

from __future__ import annotations

import dataclasses
import io
import json
import os
import shlex
import sys
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

import anoscan
from anoscan import cli_models, config
from anoscan.config import TrainConfig
from anoscan.errors import (
    AnoscanError,
    ExitCode,
    InputError,
    TrainingInterrupted,
    UsageError,
)
from anoscan.options import (
    IMAGES,
    MACHINE,
    OUTPUT,
    SETTINGS,
    BatchSize,
    Command,
    Device,
    Force,
    Json,
    Model,
    Precision,
    Quiet,
    Rate,
    ScoreName,
    Workers,
    choice,
    option,
    setting,
)
from anoscan.scores import DEFAULT_SCORE, score_named

if TYPE_CHECKING:
    from anoscan.detector import Detector
    from anoscan.images import ImageFile
    from anoscan.output import Output
    from anoscan.results import ImageScore, ScoreReport, Skipped

app = typer.Typer(
    name="anoscan",
    help="Find the odd image out: learn from a folder of normal images, then rank others.",
    invoke_without_command=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    **SETTINGS,
)
app.add_typer(cli_models.app, name="models")

TABLE_ROWS, DEMO_ROWS = 20, 10
# typer does not name the class that all its complaints about wrong usage share.
_WrongUsage: type[Any] = typer.BadParameter.__bases__[0]


def _version(wanted: bool) -> None:
    if wanted:
        sys.stdout.write(f"anoscan {anoscan.__version__}\n")
        raise typer.Exit()


@app.callback()
def _root(
    context: typer.Context,
    version: Annotated[
        bool,
        typer.Option("--version", callback=_version, is_eager=True, help="Print the version."),
    ] = False,
) -> None:
    cli_models.help_without_command(context)


@app.command(cls=Command)
def train(
    images: Annotated[
        list[Path],
        typer.Argument(
            metavar="IMAGES", help="Folders (searched recursively) or files of normal images."
        ),
    ],
    name: Annotated[
        str | None, option(help="Name of the model.", metavar="NAME", default="the folder's")
    ] = None,
    size: Annotated[
        str | None,
        setting(
            "size",
            f"Side the networks see, {config.SMALLEST_SIZE} to {config.LARGEST_SIZE} pixels.",
            "auto|N",
            default="auto",
            panel=IMAGES,
        ),
    ] = None,
    channels: Annotated[
        str | None,
        setting("channels", "1 is grey, 3 RGB.", "auto|1|3", default="auto", panel=IMAGES),
    ] = None,
    held_out: Annotated[
        float | None,
        setting("held_out", "Share of images kept from the networks.", "SHARE", panel=IMAGES),
    ] = None,
    architecture: Annotated[str | None, choice("architecture", "architectures")] = None,
    objective: Annotated[str | None, choice("objective", "objectives")] = None,
    encoder: Annotated[
        str | None, setting("encoder", "Kind of encoder.", "|".join(config.ENCODERS))
    ] = None,
    mapping: Annotated[str | None, choice("mapping", "mappings")] = None,
    rotation_weight: Annotated[
        float | None,
        setting(
            "rotation_weight", "Of naming quarter turns, beside realness; 0 for none.", "WEIGHT"
        ),
    ] = None,
    images_shown: Annotated[
        int | None,
        setting(
            "images_shown",
            "Length: real images the discriminator sees.",
            "N",
            default=str(config.IMAGES_SHOWN),
        ),
    ] = None,
    encoder_images_shown: Annotated[
        int | None,
        setting(
            "encoder_images_shown",
            "Length of the encoder's training.",
            "N",
            default="half of --images-shown",
        ),
    ] = None,
    batch_size: Annotated[int | None, setting("batch_size", "Images a step.", "N")] = None,
    learning_rate: Annotated[
        float | None,
        setting("learning_rate", "Of the GAN.", "RATE", default="the objective's"),
    ] = None,
    latent_dim: Annotated[int | None, setting("latent_dim", "Numbers in z.", "N")] = None,
    width: Annotated[int | None, setting("width", "Channels of the finest layer.", "N")] = None,
    ema_images: Annotated[
        int | None,
        setting("ema_images", "Half-life of the networks' averages, in images.", "N"),
    ] = None,
    seed: Annotated[int | None, setting("seed", "Of all randomness.", "N")] = None,
    config_file: Annotated[
        Path | None,
        option(
            "--config",
            help="JSON file of settings, or what models show --json or --dry-run print; options "
            "given here come first.",
            metavar="FILE",
        ),
    ] = None,
    resume: Annotated[
        bool, option("--resume", help="Go on with an interrupted training.")
    ] = False,
    force: Force = False,
    dry_run: Annotated[
        bool, option("--dry-run", help="Print the resolved settings as JSON and stop.")
    ] = False,
    device: Device = "auto",
    precision: Precision = "auto",
    workers: Workers = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Learn what normal looks like from a folder of normal images.

    Example: anoscan train ./normal_imgs --name bolts
    """
    given: dict[str, Any] = {
        "held_out": held_out,
        "architecture": architecture,
        "objective": objective,
        "encoder": encoder,
        "mapping": mapping,
        "rotation_weight": rotation_weight,
        "images_shown": images_shown,
        "encoder_images_shown": encoder_images_shown,
        "batch_size": batch_size,
        "learning_rate": learning_rate,
        "latent_dim": latent_dim,
        "width": width,
        "ema_images": ema_images,
        "seed": seed,
    }
    settings = {key: value for key, value in given.items() if value is not None}
    if size is not None:
        settings["size"] = _auto_int("--size", size)
    if channels is not None:
        settings["channels"] = _auto_int("--channels", channels)
    chosen = TrainConfig.from_dict(_settings(config_file) | settings)
    output = _output(as_json, quiet)
    machine: dict[str, Any] = {"device": device, "precision": precision, "workers": workers}
    if dry_run:
        _dry_run(images, chosen, machine, output)
        return
    detector = _train(output, images, config=chosen, name=name, force=force, resume=resume, **machine)
    if detector.report is None:
        raise RuntimeError("training gives a report")
    output.emit(detector.report)
    output.note(f"next: anoscan score QUERIES --model {shlex.quote(detector.reference.name)}")
    _finish(output, detector.report.images.skipped)


def _auto_int(option: str, value: str) -> int | None:
    if value == "auto":
        return None
    if not value.isascii() or not value.isdigit() or len(value) > 9:
        raise UsageError(f"{option} must be auto or a number. Got {value!r}.")
    return int(value)


def _train(output: Output, images: list[Path], **options: Any) -> Detector:
    from anoscan.detector import Detector

    with output.progress() as on_progress:
        try:
            return Detector.train(images, on_progress=on_progress, **options)
        except TrainingInterrupted as error:
            arguments = [argument for argument in sys.argv[1:] if argument != "--resume"]
            command = shlex.join(["anoscan", *arguments, "--resume"])
            raise TrainingInterrupted(error.message, hint=f"Go on with: {command}") from None


def _settings(path: Path | None) -> dict[str, Any]:
    """Settings of a JSON file: a plain object, or one that holds them under ``config``."""
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


def _dry_run(
    paths: list[Path], chosen: TrainConfig, machine: dict[str, Any], output: Output
) -> None:
    from anoscan import images, trainset
    from anoscan.learn import resolve
    from anoscan.runtime import Runtime

    runtime = Runtime.resolve(**machine)
    files = images.find(paths)
    inspection = trainset.inspect(
        files, size=chosen.size, channels=chosen.channels, workers=runtime.workers, seed=chosen.seed
    )
    document = {
        "schema": "anoscan.config/1",
        "config": resolve(chosen, inspection).to_dict(),
        "images_found": len(files),
        "device": runtime.device.type,
        "precision": runtime.precision,
    }
    output.document(document)


@app.command(cls=Command)
def score(
    paths: Annotated[
        list[str],
        typer.Argument(
            metavar="PATH",
            help="Folders, files, or - for a list on stdin: one a line, or NUL after each.",
        ),
    ],
    model: Model = None,
    top: Annotated[
        int | None,
        typer.Option(
            min=1,
            metavar="N",
            help=f"List only the N most anomalous. [default: {TABLE_ROWS} in a table, all in JSON]",
        ),
    ] = None,
    score_name: ScoreName = DEFAULT_SCORE,
    mapping: Annotated[
        str,
        option(help="How an image gets its latent.", metavar="encoder", default="encoder"),
    ] = "encoder",
    false_alarm_rate: Rate = config.FALSE_ALARM_RATE,
    fail_on_anomaly: Annotated[
        bool, option("--fail-on-anomaly", help="Exit with 4 when an image is anomalous.")
    ] = False,
    residuals: Annotated[
        Path | None,
        option(
            metavar="DIR", help="Write query | reconstruction | residual PNGs there.", panel=OUTPUT
        ),
    ] = None,
    batch_size: BatchSize = 64,
    device: Device = "auto",
    workers: Workers = None,
    seed: Annotated[
        int,
        typer.Option(
            min=0,
            metavar="N",
            help="For mappings that draw random numbers.",
            rich_help_panel=MACHINE,
        ),
    ] = 0,
    as_json: Json = False,
    as_jsonl: Annotated[
        bool, option("--jsonl", help="One JSON object an image, as it is scored.", panel=OUTPUT)
    ] = False,
    as_csv: Annotated[
        bool, option("--csv", help="One CSV row an image, as it is scored.", panel=OUTPUT)
    ] = False,
    quiet: Quiet = False,
) -> None:
    """Rank images by how anomalous they are; a higher score is more anomalous.

    Example: anoscan score ./queries --top 20 --residuals ./pictures
    """
    streams = as_jsonl or as_csv
    if as_json + as_jsonl + as_csv > 1:
        raise UsageError("--json, --jsonl and --csv exclude each other.")
    if top is not None and streams:
        raise UsageError("--top needs all images: not with --jsonl or --csv.")
    options: dict[str, Any] = {
        "score": score_named(score_name).name,
        "mapping": mapping,
        "false_alarm_rate": config.rate_in_range(false_alarm_rate),
        "residuals": residuals,
        "batch_size": batch_size,
    }
    output = _output(as_json, quiet)
    files = _files(paths)
    detector = _load(model, device, workers, output)
    if warning := detector.threshold(false_alarm_rate, score_name).warning:
        output.warn(warning)
    with output.progress(streams=streams) as on_progress:
        if streams:
            outcomes = detector.stream(files, on_progress=on_progress, **options)
            terms = detector.score_terms(score_name)
            anomalous, skipped = _stream(outcomes, output, as_csv, terms)
        else:
            report = detector.score_files(files, on_progress=on_progress, **options)
            anomalous, skipped = report.counts["anomalous"], list(report.skipped)
    if not streams:
        output.emit(_cut(report, top, None if as_json else TABLE_ROWS))
    if residuals is not None:
        output.note(f"pictures: {residuals}")
    _finish(output, skipped, anomalous=anomalous if fail_on_anomaly else 0, listed=streams)


def _files(paths: list[str]) -> list[ImageFile]:
    """Images of the arguments; ``-`` stands for the list on stdin."""
    from anoscan import images

    if "-" not in paths:
        return images.find(paths)
    found: list[ImageFile] = []
    for path in _listed():
        if os.path.isdir(path):  # noqa: PTH112 - Path.is_dir raises for names that are too long
            found += images.find([path])
        else:
            # A path that is not there is reported with the unreadable ones: the list goes on.
            found.append(images.ImageFile(path, Path(path), path))
    if named := [path for path in paths if path != "-"]:
        found += images.find(named)
    if not found:
        raise InputError("the list of images on stdin is empty.")
    return found


def _listed() -> list[str]:
    """Paths on stdin; a name that holds a newline needs the form that ``find -print0`` writes."""
    data = sys.stdin.buffer.read()
    if b"\0" in data:
        names = data.split(b"\0")
    else:
        names = [line.removesuffix(b"\r") for line in data.split(b"\n")]
    return [os.fsdecode(name) for name in names if name]


def _cut(report: ScoreReport, top: int | None, rows: int | None) -> ScoreReport:
    return dataclasses.replace(report, images=report.images[: rows if top is None else top])


def _stream(
    outcomes: Iterator[ImageScore | Skipped], output: Output, as_csv: bool, terms: tuple[str, ...]
) -> tuple[int, list[Skipped]]:
    from anoscan.detector import nothing_readable
    from anoscan.output import CsvWriter
    from anoscan.results import Skipped

    write = CsvWriter(terms).write if as_csv else output.line
    scored, anomalous, skipped = 0, 0, []
    for outcome in outcomes:
        if isinstance(outcome, Skipped):
            output.unreadable(outcome)
            skipped.append(outcome)
            continue
        write(outcome)
        scored += 1
        anomalous += outcome.verdict == "anomalous"
    if not scored:
        raise nothing_readable(skipped)
    return anomalous, skipped


@app.command(name="eval", cls=Command)
def evaluate(
    images: Annotated[
        Path | None,
        typer.Argument(
            metavar="[IMAGES]",
            help="What paths in the CSV are relative to. [default: the CSV's folder]",
        ),
    ] = None,
    labels: Annotated[
        Path | None,
        option(help="CSV with the header path,label[,mask][,class]. [required]", metavar="FILE"),
    ] = None,
    model: Model = None,
    score_name: ScoreName = DEFAULT_SCORE,
    false_alarm_rate: Rate = config.FALSE_ALARM_RATE,
    batch_size: BatchSize = 64,
    device: Device = "auto",
    workers: Workers = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Measure detection on labelled images: AUROC beside the mean image and PCA.

    Example: anoscan eval --labels labels.csv
    """
    if labels is None:
        raise UsageError("eval needs --labels FILE, a CSV with the header path,label.")
    score_named(score_name)
    config.rate_in_range(false_alarm_rate)
    output = _output(as_json, quiet)
    detector = _load(model, device, workers, output)
    with output.progress() as on_progress:
        report = detector.evaluate(
            labels,
            images,
            score=score_name,
            false_alarm_rate=false_alarm_rate,
            batch_size=batch_size,
            on_progress=on_progress,
        )
    output.emit(report)
    _finish(output, report.images.skipped)


@app.command(cls=Command)
def demo(
    folder: Annotated[
        Path,
        option(
            "--output",
            help="Where images and pictures go.",
            metavar="DIR",
            default="anoscan-demo",
            panel=OUTPUT,
        ),
    ] = Path("anoscan-demo"),
    device: Device = "auto",
    precision: Precision = "auto",
    workers: Workers = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Do the whole job, offline, on 1,797 real images that come with scikit-learn."""
    from anoscan import demo as job

    output = _output(as_json, quiet)
    with output.progress() as on_progress:
        report = job.run(
            folder, device=device, precision=precision, workers=workers, on_progress=on_progress
        )
    rows = None if as_json else DEMO_ROWS
    output.emit(dataclasses.replace(report, score=_cut(report.score, None, rows)))


@app.command(cls=Command)
def doctor(
    images: Annotated[
        list[Path] | None,
        typer.Argument(metavar="[IMAGES]", help="A folder, to see what training on it would mean."),
    ] = None,
    device: Device = "auto",
    precision: Precision = "auto",
    workers: Workers = None,
    as_json: Json = False,
) -> None:
    """Say what this machine can do and, with a folder, what training on it would mean."""
    from anoscan import doctor as practice

    report = practice.examine(images or [], device=device, precision=precision, workers=workers)
    _output(as_json, False).emit(report)
    failed = [check.message for check in report.checks if check.verdict == "fail"]
    if failed:
        raise AnoscanError(" ".join(failed))


def _output(as_json: bool, quiet: bool) -> Output:
    from anoscan.output import Output

    return Output(as_json=as_json, quiet=quiet)


def _load(model: str | None, device: str, workers: int | None, output: Output) -> Detector:
    from anoscan.detector import Detector

    detector = Detector.load(model, device=device, workers=workers)
    if model is None:
        output.note(f"using the model trained last: {detector.reference.name}")
    return detector


def _finish(output: Output, skipped: Any, *, anomalous: int = 0, listed: bool = False) -> None:
    """Report skipped files and leave with the exit code that the contract asks for."""
    if not listed:
        output.skipped(skipped)
    if anomalous:
        raise typer.Exit(ExitCode.ANOMALY)
    if skipped:
        raise typer.Exit(ExitCode.SKIPPED)


def main() -> NoReturn:
    """Run the command line; every exit code is decided here or by `typer.Exit`."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        # A name that the terminal's encoding lacks is shown escaped.
        sys.stdout.reconfigure(errors="backslashreplace")
    sys.exit(_run())


def _run() -> int:
    try:
        code = app(standalone_mode=False) or ExitCode.DONE
        sys.stdout.flush()
    except _WrongUsage as error:
        command = error.ctx.command_path if error.ctx else "anoscan"
        return _fail(UsageError(error.format_message(), hint=f"See {command} --help."))
    except AnoscanError as error:
        return _fail(error)
    except BrokenPipeError:
        return _reader_gone()
    except OSError as error:
        # A full disk or a folder that is not the user's; without a number it is none of these.
        if error.errno is None:
            return _bug()
        named = f"{error.filename}: " if error.filename else ""
        return _fail(AnoscanError(f"{named}{error.strerror}."))
    except KeyboardInterrupt:
        code = ExitCode.INTERRUPTED
    except Exception:
        return _bug()
    if code == ExitCode.INTERRUPTED:
        _output(False, False).note("interrupted")
    return int(code)


def _fail(error: AnoscanError) -> int:
    _output(False, False).error(error)
    return error.exit_code


def _bug() -> int:
    traceback.print_exc()
    sys.stderr.write("This is a bug in anoscan: please report it with the lines above.\n")
    return ExitCode.BUG


def _reader_gone() -> int:
    # As in | head: nobody is left to tell, and Python must not try again when it ends.
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return ExitCode.FAILED
