"""The command line: declarations, and one call each.

Nothing here imports torch or scikit-learn until a command runs: ``--help`` must answer at once.
"""

from __future__ import annotations

import json
import sys
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

import anoscan
from anoscan import registry
from anoscan.config import (
    DEVICES,
    ENCODERS,
    FALSE_ALARM_RATE,
    LARGEST_SIZE,
    PRECISIONS,
    SMALLEST_SIZE,
    TrainConfig,
)
from anoscan.errors import AnoscanError, ExitCode, InputError, UsageError

if TYPE_CHECKING:
    from anoscan.images import ImageFile
    from anoscan.output import Output
    from anoscan.results import ImageScore, ScoreReport, Skipped

app = typer.Typer(
    name="anoscan",
    help="Find the odd image out: learn from a folder of normal images, then rank others.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
models_app = typer.Typer(no_args_is_help=True, help="List, show and move trained models.")
app.add_typer(models_app, name="models")

TABLE_ROWS = 20


def _choices(family: str) -> str:
    entries = (f"{name}: {registry.summary(family, name)}" for name in registry.names(family))
    return " ".join(entries)


_DEFAULT = TrainConfig()
_DATA, _MODEL, _MACHINE, _OUTPUT = "Images", "Model", "Machine", "Output"

Json = Annotated[
    bool, typer.Option("--json", help="Print one JSON document.", rich_help_panel=_OUTPUT)
]
Quiet = Annotated[
    bool, typer.Option("--quiet", "-q", help="No notes, no progress.", rich_help_panel=_OUTPUT)
]
Device = Annotated[
    str,
    typer.Option(metavar="|".join(DEVICES), help="Where to compute.", rich_help_panel=_MACHINE),
]
Precision = Annotated[
    str,
    typer.Option(
        metavar="|".join(PRECISIONS),
        help="Of training; scoring is always float32.",
        rich_help_panel=_MACHINE,
    ),
]
Workers = Annotated[
    int | None,
    typer.Option(min=1, help="Threads that decode images.", rich_help_panel=_MACHINE),
]
Model = Annotated[
    str | None,
    typer.Option(help="Name or path of a model.", show_default="the one trained last"),
]
Rate = Annotated[
    float,
    typer.Option(help="Share of normal images that may be called anomalous."),
]
BatchSize = Annotated[
    int,
    typer.Option(
        min=1, help="Images a pass; scores do not depend on it.", rich_help_panel=_MACHINE
    ),
]


def _version(wanted: bool) -> None:
    if wanted:
        sys.stdout.write(f"anoscan {anoscan.__version__}\n")
        raise typer.Exit()


@app.callback()
def _root(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_version, is_eager=True, help="Print the version."),
    ] = False,
) -> None:
    pass


@app.command()
def train(
    images: Annotated[
        list[Path], typer.Argument(help="Folders (searched recursively) or files of normal images.")
    ],
    name: Annotated[
        str | None, typer.Option(help="Name of the model.", show_default="that of the folder")
    ] = None,
    size: Annotated[
        str,
        typer.Option(
            help=f"Side the networks see, {SMALLEST_SIZE} to {LARGEST_SIZE} pixels, or auto.",
            rich_help_panel=_DATA,
        ),
    ] = "auto",
    channels: Annotated[
        str,
        typer.Option(metavar="auto|1|3", help="1 grey, 3 RGB.", rich_help_panel=_DATA),
    ] = "auto",
    held_out: Annotated[
        float | None,
        typer.Option(
            help="Share of images kept from the networks.",
            show_default=str(_DEFAULT.held_out),
            rich_help_panel=_DATA,
        ),
    ] = None,
    architecture: Annotated[
        str | None,
        typer.Option(
            help=_choices("architectures"),
            show_default=str(_DEFAULT.architecture),
            rich_help_panel=_MODEL,
        ),
    ] = None,
    objective: Annotated[
        str | None,
        typer.Option(
            help=_choices("objectives"),
            show_default=str(_DEFAULT.objective),
            rich_help_panel=_MODEL,
        ),
    ] = None,
    encoder: Annotated[
        str | None,
        typer.Option(
            metavar="|".join(ENCODERS),
            help="Kind of encoder.",
            show_default=str(_DEFAULT.encoder),
            rich_help_panel=_MODEL,
        ),
    ] = None,
    mapping: Annotated[
        str | None,
        typer.Option(
            help=_choices("mappings"), show_default=str(_DEFAULT.mapping), rich_help_panel=_MODEL
        ),
    ] = None,
    images_shown: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Length: real images the discriminator sees.",
            show_default="96000",
            rich_help_panel=_MODEL,
        ),
    ] = None,
    encoder_images_shown: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Length of the encoder's training.",
            show_default="half of --images-shown",
            rich_help_panel=_MODEL,
        ),
    ] = None,
    batch_size: Annotated[
        int | None,
        typer.Option(
            min=2,
            help="Images a step.",
            show_default=str(_DEFAULT.batch_size),
            rich_help_panel=_MODEL,
        ),
    ] = None,
    learning_rate: Annotated[
        float | None,
        typer.Option(help="Of the GAN.", show_default="the objective's", rich_help_panel=_MODEL),
    ] = None,
    latent_dim: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Numbers in z.",
            show_default=str(_DEFAULT.latent_dim),
            rich_help_panel=_MODEL,
        ),
    ] = None,
    width: Annotated[
        int | None,
        typer.Option(
            min=4,
            help="Channels of the finest layer.",
            show_default=str(_DEFAULT.width),
            rich_help_panel=_MODEL,
        ),
    ] = None,
    ema_images: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Half-life of the generator's average, in images.",
            show_default=str(_DEFAULT.ema_images),
            rich_help_panel=_MODEL,
        ),
    ] = None,
    seed: Annotated[
        int | None, typer.Option(min=0, help="Of all randomness.", show_default=str(_DEFAULT.seed))
    ] = None,
    config: Annotated[
        Path | None,
        typer.Option(help="JSON file of settings; options given here come first."),
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with an interrupted training.")
    ] = False,
    force: Annotated[
        bool, typer.Option("--force", help="Replace a model of the same name.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print the resolved settings and stop.")
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
    given = {
        "size": _auto_int("--size", size),
        "channels": _auto_int("--channels", channels),
        "held_out": held_out,
        "architecture": architecture,
        "objective": objective,
        "encoder": encoder,
        "mapping": mapping,
        "images_shown": images_shown,
        "encoder_images_shown": encoder_images_shown,
        "batch_size": batch_size,
        "learning_rate": learning_rate,
        "latent_dim": latent_dim,
        "width": width,
        "ema_images": ema_images,
        "seed": seed,
    }
    settings = _settings(config) | {key: value for key, value in given.items() if value is not None}
    chosen = TrainConfig.from_dict(settings)
    output = _output(as_json, quiet)
    if dry_run:
        _dry_run(images, chosen, workers, output)
        return
    from anoscan.detector import Detector

    with output.progress() as on_progress:
        detector = Detector.train(
            images,
            config=chosen,
            name=name,
            force=force,
            resume=resume,
            device=device,
            precision=precision,
            workers=workers,
            on_progress=on_progress,
        )
    if detector.report is None:
        raise RuntimeError("training gives a report")
    output.emit(detector.report)
    output.note(f"next: anoscan score QUERIES --model {detector.reference.name} --top 20")
    _finish(output, detector.report.images.skipped)


def _auto_int(option: str, value: str) -> int | None:
    if value == "auto":
        return None
    if not value.isascii() or not value.isdigit():
        raise UsageError(f"{option} must be auto or a number. Got {value!r}.")
    return int(value)


def _settings(path: Path | None) -> dict[str, Any]:
    """Settings of a JSON file: a plain object, or what ``models show --json`` prints."""
    if path is None:
        return {}
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"--config {path}: {error.strerror or error}.") from error
    except ValueError as error:
        raise InputError(f"--config {path} is not JSON: {error}.") from error
    if isinstance(values, dict) and isinstance(values.get("config"), dict):
        values = values["config"]
    if not isinstance(values, dict):
        raise InputError(f"--config {path} must hold one JSON object of settings.")
    return values


def _dry_run(paths: list[Path], config: TrainConfig, workers: int | None, output: Output) -> None:
    from anoscan import images, trainset
    from anoscan.learn import resolve
    from anoscan.runtime import Runtime

    runtime = Runtime.resolve(workers=workers)
    files = images.find(paths)
    inspection = trainset.inspect(
        files, size=config.size, channels=config.channels, workers=runtime.workers, seed=config.seed
    )
    resolved = resolve(config, inspection)
    output.document({"config": resolved.to_dict(), "images_found": len(files)})


@app.command()
def score(
    paths: Annotated[
        list[str],
        typer.Argument(metavar="PATH...", help="Folders, files, or - for a list on stdin."),
    ],
    model: Model = None,
    top: Annotated[
        int | None,
        typer.Option(
            min=1, help="List only the N most anomalous.", show_default="20 in a table, all in JSON"
        ),
    ] = None,
    score_name: Annotated[
        str,
        typer.Option(
            "--score",
            metavar="calibrated|paper",
            help="Which score: the default, or f-AnoGAN's own.",
        ),
    ] = "calibrated",
    mapping: Annotated[
        str, typer.Option(metavar="encoder", help="How an image gets its latent.")
    ] = "encoder",
    false_alarm_rate: Rate = FALSE_ALARM_RATE,
    fail_on_anomaly: Annotated[
        bool, typer.Option("--fail-on-anomaly", help="Exit with 4 when an image is anomalous.")
    ] = False,
    residuals: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="Write query | reconstruction | residual PNGs there.",
            rich_help_panel=_OUTPUT,
        ),
    ] = None,
    batch_size: BatchSize = 64,
    device: Device = "auto",
    workers: Workers = None,
    seed: Annotated[
        int,
        typer.Option(
            min=0, help="For mappings that draw random numbers.", rich_help_panel=_MACHINE
        ),
    ] = 0,
    as_json: Json = False,
    as_jsonl: Annotated[
        bool,
        typer.Option(
            "--jsonl", help="One JSON object an image, as it is scored.", rich_help_panel=_OUTPUT
        ),
    ] = False,
    as_csv: Annotated[
        bool,
        typer.Option(
            "--csv", help="One CSV row an image, as it is scored.", rich_help_panel=_OUTPUT
        ),
    ] = False,
    quiet: Quiet = False,
) -> None:
    """Rank images by how anomalous they are; a higher score is more anomalous.

    Example: anoscan score ./queries --top 20 --residuals ./pictures
    """
    if as_json + as_jsonl + as_csv > 1:
        raise UsageError("--json, --jsonl and --csv exclude each other.")
    if top is not None and (as_jsonl or as_csv):
        raise UsageError("--top needs all images: not with --jsonl or --csv.")
    from anoscan.detector import Detector

    output = _output(as_json, quiet)
    detector = _load(Detector, model, device, workers, output)
    options: dict[str, Any] = {
        "score": score_name,
        "mapping": mapping,
        "false_alarm_rate": false_alarm_rate,
        "residuals": residuals,
        "batch_size": batch_size,
    }
    if warning := detector.threshold(false_alarm_rate, score_name).warning:
        output.warn(warning)
    files = _files(paths)
    with output.progress() as on_progress:
        if as_jsonl or as_csv:
            outcomes = detector.stream(files, on_progress=on_progress, **options)
            terms = detector.score_terms(score_name)
            anomalous, skipped = _stream(outcomes, output, as_csv, terms)
        else:
            report = detector.score_files(files, on_progress=on_progress, **options)
            anomalous, skipped = report.counts["anomalous"], list(report.skipped)
    if not (as_jsonl or as_csv):
        output.emit(_cut(report, top, as_json))
    _finish(output, skipped, anomalous=anomalous if fail_on_anomaly else 0)


def _files(paths: list[str]) -> list[ImageFile]:
    """Images of the arguments; ``-`` stands for a list of paths on stdin, one a line."""
    from anoscan import images

    if paths != ["-"]:
        return images.find(paths)
    listed = [line.rstrip("\r\n") for line in sys.stdin]
    found: list[ImageFile] = []
    for path in filter(None, listed):
        if Path(path).is_dir():
            found += images.find([path])
        else:
            # A path that is not there is reported with the unreadable ones: the list goes on.
            found.append(images.ImageFile(path, Path(path), path))
    if not found:
        raise InputError("the list of images on stdin is empty.")
    return found


def _cut(report: ScoreReport, top: int | None, as_json: bool) -> ScoreReport:
    import dataclasses

    rows = top if top is not None or as_json else TABLE_ROWS
    return dataclasses.replace(report, images=report.images[:rows])


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
            skipped.append(outcome)
            continue
        write(outcome)
        scored += 1
        anomalous += outcome.verdict == "anomalous"
    if not scored:
        raise nothing_readable(skipped)
    return anomalous, skipped


@app.command(name="eval")
def evaluate(
    images: Annotated[
        Path | None,
        typer.Argument(
            help="What paths in the CSV are relative to.", show_default="the CSV's folder"
        ),
    ] = None,
    labels: Annotated[
        Path | None, typer.Option(help="CSV with the header path,label[,mask][,class].")
    ] = None,
    model: Model = None,
    score_name: Annotated[
        str,
        typer.Option(
            "--score",
            metavar="calibrated|paper",
            help="Which score: the default, or f-AnoGAN's own.",
        ),
    ] = "calibrated",
    false_alarm_rate: Rate = FALSE_ALARM_RATE,
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
    from anoscan.detector import Detector

    output = _output(as_json, quiet)
    detector = _load(Detector, model, device, workers, output)
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


@app.command()
def demo(
    output_folder: Annotated[
        Path, typer.Option("--output", metavar="DIR", help="Where images and pictures go.")
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
            output_folder,
            device=device,
            precision=precision,
            workers=workers,
            on_progress=on_progress,
        )
    output.emit(_short(report, as_json))


def _short(report: Any, as_json: bool) -> Any:
    import dataclasses

    return dataclasses.replace(report, score=_cut(report.score, None, as_json))


@app.command()
def doctor(
    images: Annotated[
        list[Path] | None, typer.Argument(help="A folder to train on, to see what that would mean.")
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
    if report.verdict == "fail":
        raise typer.Exit(ExitCode.FAILED)


@models_app.command(name="list")
def models_list(as_json: Json = False) -> None:
    """List the models in the store."""
    from anoscan import store
    from anoscan.results import ModelsReport

    _output(as_json, False).emit(ModelsReport(models=tuple(store.models())))


@models_app.command(name="show")
def models_show(
    model: Annotated[str | None, typer.Argument(help="Name or path.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="The same; always JSON.")] = False,
) -> None:
    """Print all that a model file says of the model, as JSON."""
    from anoscan import modelfile, store

    _output(True, False).document(modelfile.read_metadata(store.resolve(model)))


@models_app.command(name="remove")
def models_remove(name: Annotated[str, typer.Argument(help="Model in the store.")]) -> None:
    """Delete a model."""
    from anoscan import store

    store.remove(name)
    _output(False, False).note(f"removed {name}")


Force = Annotated[bool, typer.Option("--force", help="Replace what is there.")]


@models_app.command(name="rename")
def models_rename(
    old: Annotated[str, typer.Argument(help="Name now.")],
    new: Annotated[str, typer.Argument(help="Name then.")],
    force: Force = False,
) -> None:
    """Rename a model."""
    from anoscan import store

    store.rename(old, new, force=force)
    _output(False, False).note(f"renamed {old} to {new}")


@models_app.command(name="export")
def models_export(
    name: Annotated[str, typer.Argument(help="Model in the store.")],
    destination: Annotated[Path, typer.Argument(help="File or folder to copy it to.")],
    force: Force = False,
) -> None:
    """Copy a model out of the store; the one file is all there is."""
    from anoscan import store
    from anoscan.output import printable

    path = store.export(name, destination, force=force)
    _output(False, False).text(printable(str(path)))


@models_app.command(name="import")
def models_import(
    file: Annotated[Path, typer.Argument(help="Model file.")],
    name: Annotated[
        str | None, typer.Option(help="Name in the store.", show_default="the file's")
    ] = None,
    force: Force = False,
) -> None:
    """Copy a model file into the store."""
    from anoscan import store

    imported = store.import_model(file, name=name, force=force)
    _output(False, False).note(f"imported {imported}")


def _output(as_json: bool, quiet: bool) -> Output:
    from anoscan.output import Output

    return Output(as_json=as_json, quiet=quiet)


def _load(kind: Any, model: str | None, device: str, workers: int | None, output: Output) -> Any:
    detector = kind.load(model, device=device, workers=workers)
    if model is None:
        output.note(f"using the model trained last: {detector.reference.name}")
    return detector


def _finish(output: Output, skipped: Any, *, anomalous: int = 0) -> None:
    """Report skipped files and leave with the exit code that the contract asks for."""
    output.skipped(skipped)
    if anomalous:
        raise typer.Exit(ExitCode.ANOMALY)
    if skipped:
        raise typer.Exit(ExitCode.SKIPPED)


def main() -> NoReturn:
    """Run the command line; every exit code is decided here or by `typer.Exit`."""
    try:
        app()
    except AnoscanError as error:
        _output(False, False).error(error)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        sys.exit(ExitCode.INTERRUPTED)
    except BrokenPipeError:
        # The reader went away (| head): nobody is left to tell.
        sys.stderr.close()
        sys.exit(ExitCode.FAILED)
    except Exception:
        traceback.print_exc()
        sys.stderr.write("This is a bug in anoscan: please report it with the lines above.\n")
        sys.exit(ExitCode.BUG)
    sys.exit(ExitCode.DONE)
