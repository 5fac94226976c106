"""The command line: declarations, and one call each.

Nothing here imports torch or scikit-learn until a command runs: ``--help`` must answer at once.
"""

from __future__ import annotations

import dataclasses
import io
import os
import sys
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

import anoscan
from anoscan import (
    cli_calibration,
    cli_models,
    cli_report,
    cli_sample,
    cli_train,
    config,
    queries,
    writing,
)
from anoscan.errors import (
    AnoscanError,
    ExitCode,
    UsageError,
)
from anoscan.options import (
    OUTPUT,
    SETTINGS,
    BatchSize,
    Command,
    Device,
    DiscriminationLoss,
    Json,
    Mapping,
    Maps,
    MapsFormat,
    Model,
    Models,
    Precision,
    Quiet,
    Rate,
    Report,
    ReportAssets,
    RoiMask,
    ScoreName,
    SearchSeed,
    SearchSteps,
    Workers,
    atlas,
    finish,
    load,
    option,
)
from anoscan.scores import (
    DEFAULT_SCORE,
    Inversion,
    score_named,
)

if TYPE_CHECKING:
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

TABLE_ROWS, DEMO_ROWS, SHOWN = 20, 10, 5
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
    mapping: Mapping = "encoder",
    discrimination_loss: DiscriminationLoss = "feature",
    search_steps: SearchSteps = None,
    false_alarm_rate: Rate = None,
    roi: RoiMask = None,
    fail_on_anomaly: Annotated[
        bool, option("--fail-on-anomaly", help="Exit with 4 when an image is anomalous.")
    ] = False,
    residuals: Annotated[
        Path | None,
        option(
            metavar="DIR", help="Write query | reconstruction | residual PNGs there.", panel=OUTPUT
        ),
    ] = None,
    report_file: Report = None,
    report_assets: ReportAssets = False,
    show: Annotated[
        bool,
        option(
            "--show",
            help=f"Show the most anomalous images in the terminal: --top, or {SHOWN}.",
            panel=OUTPUT,
        ),
    ] = False,
    nearest: Annotated[
        int,
        typer.Option(
            min=0,
            metavar="K",
            help="Name the K training images most like each query (train --keep-thumbnails); "
            "with --residuals, show them too.",
        ),
    ] = 0,
    maps: Maps = None,
    maps_format: MapsFormat = None,
    batch_size: BatchSize = 64,
    device: Device = "auto",
    workers: Workers = None,
    seed: SearchSeed = 0,
    as_json: Json = False,
    as_jsonl: Annotated[
        bool, option("--jsonl", help="One JSON object an image, as it is scored.", panel=OUTPUT)
    ] = False,
    as_csv: Annotated[
        bool, option("--csv", help="One CSV row an image, as it is scored.", panel=OUTPUT)
    ] = False,
    quiet: Quiet = False,
) -> None:
    """Rank images by how anomalous they are. A higher score is more anomalous.

    Example: anoscan score ./queries --top 20 --residuals ./pictures
    """
    streams = as_jsonl or as_csv
    if as_json + as_jsonl + as_csv > 1:
        raise UsageError("--json, --jsonl and --csv exclude each other.")
    if top is not None and streams:
        raise UsageError("--top needs all images: not with --jsonl or --csv.")
    if show and (as_json or streams):
        raise UsageError("--show goes with the table: not with --json, --jsonl or --csv.")
    if report_file is not None and streams:
        raise UsageError("--report needs all images: not with --jsonl or --csv.")
    if report_assets and report_file is None:
        raise UsageError("--report-assets needs --report.")
    options: dict[str, Any] = {
        "score": score_named(score_name).name,
        "mapping": (how := Inversion(mapping, discrimination_loss, search_steps, seed)),
        "false_alarm_rate": _rate(false_alarm_rate),
        "residuals": residuals,
        "maps": atlas(maps, maps_format),
        "nearest": nearest,
        "batch_size": batch_size,
    }
    output = _output(as_json, quiet)
    beside = cli_report.beside(report_file) if report_file and report_assets else None
    written = [folder for folder in (residuals, maps, beside) if folder is not None]
    files, notes = queries.gather(paths, written)
    for note in notes:
        output.note(note)
    detector = load(model, device, workers, roi, output)
    if warning := detector.threshold(false_alarm_rate, score_name, how).warning:
        output.warn(warning)
    if hint := detector.hint(score_name, how):
        output.note(hint)
    with (
        cli_report.Watch(
            len(files), report_file, assets=report_assets, show=show * (top or SHOWN)
        ) as watch,
        output.progress(streams=streams) as on_progress,
    ):
        if streams:
            outcomes = detector.stream(files, on_progress=on_progress, **options)
            terms = detector.score_terms(score_name)
            anomalous, skipped = _stream(outcomes, output, as_csv, terms)
        else:
            report = detector.score_files(
                files, on_progress=on_progress, on_image=watch.on_image, **options
            )
            anomalous, skipped = report.counts["anomalous"], list(report.skipped)
            watch.write(report, detector)
    if not streams:
        output.emit(_cut(report, top, None if as_json else TABLE_ROWS))
        if report.warning:
            output.warn(report.warning)
    if residuals is not None:
        output.note(f"pictures: {residuals}")
    watch.show(output)
    if maps is not None:
        output.note(f"maps: {maps}")
    finish(output, skipped, anomalous=anomalous if fail_on_anomaly else 0, listed=streams)


def _rate(rate: float | None) -> float | None:
    return None if rate is None else config.rate_in_range(rate)


def _cut(report: ScoreReport, top: int | None, rows: int | None) -> ScoreReport:
    return dataclasses.replace(report, images=report.images[: rows if top is None else top])


def _stream(
    outcomes: Iterator[ImageScore | Skipped], output: Output, as_csv: bool, terms: tuple[str, ...]
) -> tuple[int, list[Skipped]]:
    from anoscan.judgement import nothing_readable
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


def evaluate(
    images: Annotated[
        Path | None,
        typer.Argument(
            metavar="IMAGES",
            help="What paths in the CSV are relative to; or a folder laid out like MVTec AD, "
            "which needs no CSV. [default: the CSV's folder]",
        ),
    ] = None,
    labels: Annotated[
        Path | None,
        option(help="CSV with the header path,label[,mask][,class].", metavar="FILE"),
    ] = None,
    masks: Annotated[
        Path | None,
        option(
            help="Measure pixels too: masks there have the relative paths of the images, with "
            "another suffix or _mask added. [default: the CSV's masks]",
            metavar="DIR",
        ),
    ] = None,
    model: Models = None,
    score_name: ScoreName = DEFAULT_SCORE,
    mapping: Mapping = "encoder",
    discrimination_loss: DiscriminationLoss = "feature",
    search_steps: SearchSteps = None,
    false_alarm_rate: Rate = None,
    roi: RoiMask = None,
    plots: Annotated[
        Path | None,
        option(
            help="Write ROC, precision-recall, histograms and confusion there, as PNG and SVG.",
            metavar="DIR",
            panel=OUTPUT,
        ),
    ] = None,
    batch_size: BatchSize = 64,
    device: Device = "auto",
    workers: Workers = None,
    seed: SearchSeed = 0,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Measure detection on labelled images. AUROC stands beside those of the mean image and PCA.

    Example: anoscan eval --labels labels.csv --masks ./masks
    """
    if labels is None and images is None:
        raise UsageError(
            "eval needs --labels FILE, a CSV with the header path,label, or a folder laid out "
            "like MVTec AD."
        )
    score_named(score_name)
    how = Inversion(mapping, discrimination_loss, search_steps, seed)
    _rate(false_alarm_rate)
    if plots is not None:
        from anoscan import plots as drawing

        drawing.check()
        writing.check(plots, "--plots", folder=True)
    output = _output(as_json, quiet)
    names: list[str | None] = [*model] if model else [None]
    detector, *others = [load(name, device, workers, roi, output) for name in names]
    if hint := detector.hint(score_name, how):
        output.note(hint)
    with output.progress() as on_progress:
        report = detector.evaluate(
            labels,
            images,
            masks=masks,
            against=others,
            score=score_name,
            mapping=how,
            false_alarm_rate=false_alarm_rate,
            batch_size=batch_size,
            on_progress=on_progress,
        )
    if report.warning:
        output.warn(report.warning)
    output.emit(report)
    if plots is not None:
        drawing.write(report, plots)
        output.note(f"plots: {plots}")
    masks_skipped = report.pixel.skipped if report.pixel else ()
    finish(output, [*report.images.skipped, *masks_skipped])


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
    """Do the whole job on real images, offline. They are scikit-learn's scanned digits."""
    from anoscan import demo as job

    output = _output(as_json, quiet)
    with output.progress() as on_progress:
        report = job.run(
            folder, device=device, precision=precision, workers=workers, on_progress=on_progress
        )
    rows = None if as_json else DEMO_ROWS
    output.emit(dataclasses.replace(report, score=_cut(report.score, None, rows)))


def doctor(
    images: Annotated[
        list[Path] | None,
        typer.Argument(metavar="IMAGES", help="A folder, to see what training on it would mean."),
    ] = None,
    size: Annotated[
        str | None, option(help="Side of that training, as for train.", metavar="auto|N")
    ] = None,
    config_file: Annotated[
        Path | None,
        option(
            "--config",
            help="Settings of that training, as for train: whole images, no folds.",
            metavar="FILE",
        ),
    ] = None,
    device: Device = "auto",
    precision: Precision = "auto",
    workers: Workers = None,
    as_json: Json = False,
) -> None:
    """Say what this machine can do. With a folder: what training on it would mean."""
    from anoscan import doctor as practice

    output = _output(as_json, False)
    given = {} if size is None else {"size": cli_train.auto_int("--size", size)}
    settings = cli_train.settings_of(config_file) | given
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


def _output(as_json: bool, quiet: bool) -> Output:
    from anoscan.output import Output

    return Output(as_json=as_json, quiet=quiet)


_COMMANDS: tuple[Callable[..., None], ...] = (
    cli_train.train,
    score,
    evaluate,
    cli_sample.sample,
    cli_calibration.calibrate,
    cli_calibration.drift,
    cli_calibration.suspects,
    demo,
    doctor,
)
for command in _COMMANDS:
    app.command(name="eval" if command is evaluate else None, cls=Command)(command)

models = typer.Typer(
    help="List, show and move trained models.",
    rich_markup_mode=None,
    invoke_without_command=True,
    **SETTINGS,
)
models.callback()(cli_models.help_without_command)
app.add_typer(models, name="models")
_MODELS: dict[str, Callable[..., None]] = {
    "list": cli_models.list_models,
    "show": cli_models.show,
    "remove": cli_models.remove,
    "rename": cli_models.rename,
    "export": cli_models.export,
    "import": cli_models.import_model,
}
for name, command in _MODELS.items():
    models.command(name=name, cls=Command)(command)


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
        message = error.format_message()
        message = message if message.endswith("?") else message.rstrip(".") + "."
        return _fail(UsageError(message, hint=f"See {command} --help."))
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
