"""The command ``anoscan score``: print the ranking, and write pictures, maps and the page."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from anoscan.cli import queries
from anoscan.cli.destinations import Destinations, ScoringViewers, first_failure
from anoscan.cli.options import (
    MACHINE,
    OUTPUT,
    SHOWN,
    TABLE_ROWS,
    Device,
    Every,
    HelpAll,
    Json,
    Maps,
    MapsFormat,
    Model,
    Quiet,
    Report,
    ReportAssets,
    RoiMask,
    Workers,
    finish,
    first_images,
    load,
    map_files,
    option,
    output_of,
)
from anoscan.cli.settings import asked_for, with_request
from anoscan.core.config import SHOW_HELP
from anoscan.core.errors import UsageError
from anoscan.scoring.choices import ScoreRequest

if TYPE_CHECKING:
    from anoscan.cli.output import Output
    from anoscan.core.progress import OnProgress
    from anoscan.core.results import Alarm, ImageScore, ScoreReport, Skipped, Threshold
    from anoscan.detector import Detector
    from anoscan.images.files import ImageFile
    from anoscan.report.alarms import Rule, Tally
    from anoscan.report.views import OnImage, ViewFiles


@with_request
def score(
    paths: Annotated[
        list[str],
        typer.Argument(
            metavar="PATH",
            help="Folders and files; - reads a list from stdin, one a line or with NUL after each.",
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
    roi: RoiMask = None,
    every: Every = 1,
    allow_empty: Annotated[
        bool,
        option("--allow-empty", help="Take an empty folder, or an empty list, for no fault."),
    ] = False,
    fail_on_anomaly: Annotated[
        bool, option("--fail-on-anomaly", help="Exit with 4 when an image is anomalous.")
    ] = False,
    fail_if: Annotated[
        list[str] | None,
        option(
            "--fail-if",
            metavar="RULE",
            help="Exit with 4 when this holds, in quotes: 'count>N' anomalous images; 'share>X' of "
            "all images; 'q<X', the q-value of any image; excess, more than normal images explain "
            "at this false-alarm rate. May be repeated.",
        ),
    ] = None,
    result_files: Annotated[
        list[Path] | None,
        option(
            "--output",
            "-o",
            metavar="FILE",
            help="Also write all images there, ranked, as the name ends: .csv, .json, .jsonl, "
            ".xlsx, .parquet, .html (like --report), or .coco.json with the regions. May be "
            "repeated.",
            panel=OUTPUT,
        ),
    ] = None,
    append: Annotated[
        Path | None,
        option(
            "--append",
            metavar="FILE",
            help="Append a row about this run to this history, .csv or .parquet, which anoscan "
            "trend reads.",
            panel=OUTPUT,
        ),
    ] = None,
    residuals: Annotated[
        Path | None,
        option(
            metavar="DIR",
            help="Write a PNG of query, reconstruction and residual of each image there.",
            panel=OUTPUT,
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
    engine: Annotated[
        str,
        option(
            "--engine",
            help="Score here, or on the Ray cluster of $RAY_ADDRESS (or one that is started here), "
            "with the extra ray.",
            metavar="local|ray",
            default="local",
            panel=MACHINE,
        ),
    ] = "local",
    nearest: Annotated[
        int,
        typer.Option(
            min=0,
            metavar="K",
            help="Name the K training images that are most like each query, and draw them with "
            "--residuals; the model needs train --keep-thumbnails.",
        ),
    ] = 0,
    maps: Maps = None,
    maps_format: MapsFormat = None,
    show_channels: Annotated[
        str | None,
        option(
            "--show-channels",
            help=SHOW_HELP,
            metavar="N[,N,N]",
            default="the model's",
            panel=OUTPUT,
        ),
    ] = None,
    device: Device = "auto",
    runtime: Annotated[
        str,
        option(
            help="Compute with this library. onnx: ONNX Runtime, on the processor and for the "
            "calibrated score alone; it needs the extra onnx, and prepares a model at first use.",
            metavar="torch|onnx",
            default="torch",
            panel=MACHINE,
        ),
    ] = "torch",
    workers: Workers = None,
    as_json: Json = False,
    as_jsonl: Annotated[
        bool,
        option("--jsonl", help="Print one JSON object an image, as it is scored.", panel=OUTPUT),
    ] = False,
    as_csv: Annotated[
        bool, option("--csv", help="Print one CSV row an image, as it is scored.", panel=OUTPUT)
    ] = False,
    quiet: Quiet = False,
    help_all: HelpAll = False,
    **asked: Any,
) -> None:
    """Rank images by how anomalous they are. A higher score is more anomalous."""
    streams = as_jsonl or as_csv
    if as_json + as_jsonl + as_csv > 1:
        raise UsageError("--json, --jsonl and --csv exclude each other.")
    if show and (as_json or streams):
        raise UsageError("--show goes with the table: not with --json, --jsonl or --csv.")
    for named, value in {"top": top, "report": report_file, "output": result_files}.items():
        if value and streams:
            raise UsageError(
                f"--{named} needs all images: not with --jsonl or --csv.",
                hint="-o FILE.csv and -o FILE.jsonl have all images by rank, and go with it.",
            )
    wanted = Destinations.of(report_file, result_files, append)
    _check_engine(
        engine, residuals=residuals, maps=maps, report=wanted.page, show=show, streams=streams
    )
    if report_assets and wanted.page is None:
        raise UsageError("--report-assets needs --report.")
    rules = _rules([*["count>0"] * fail_on_anomaly, *(fail_if or ())])
    request = ScoreRequest.of(nearest=nearest, **asked_for(asked))
    wanted_maps = map_files(maps, maps_format)
    if runtime != "torch":
        from anoscan.export.runtime import check_request, check_runtime

        check_runtime(runtime, device)
        check_request(runtime, request)
    output = output_of(as_json, quiet)
    pages_folder = beside(wanted.page) if wanted.page and report_assets else None
    written = [folder for folder in (residuals, maps, pages_folder) if folder is not None]
    files, notes = queries.gather(paths, written, allow_empty=allow_empty, every=every)
    if not streams:
        extras = {"residuals": residuals, "maps": maps}
        kept = [name for name, value in extras.items() if value is not None]
        if warning := memory_warning(len(files), [*kept, *wanted.kept()], nearest):
            output.warn(warning)
    for note in notes:
        output.note(note)
    detector = load(model, device, workers, roi, output, runtime)
    if show_channels is not None:
        detector.show_channels(show_channels)
    if warning := detector.threshold(request).warning:
        output.caution(warning)
    if hint := detector.hint(request):
        output.note(hint)
    views = detector.view_files(residuals, wanted_maps)
    job = _Job(paths, files, detector, request, views, wanted, rules, output, engine, workers)
    if streams:
        alarms, skipped = job.print_each(as_csv)
    else:
        alarms, skipped = job.rank(top, assets=report_assets, show=show)
    if residuals is not None:
        output.note(f"pictures: {residuals}")
    if maps is not None:
        output.note(f"maps: {maps}")
    output.alarms(alarms)
    finish(output, skipped, alarm=any(alarm.holds for alarm in alarms), listed=streams)


@dataclass(frozen=True)
class _Job:
    """Images to score, how, and where the results go."""

    paths: Sequence[str]
    files: Sequence[ImageFile]
    detector: Detector
    request: ScoreRequest
    views: ViewFiles | None
    wanted: Destinations
    rules: Sequence[Rule]
    output: Output
    engine: str = "local"
    workers: int | None = None

    def rank(
        self, top: int | None, *, assets: bool, show: bool
    ) -> tuple[Sequence[Alarm], Sequence[Skipped]]:
        """Score all images, and print the ranking; return the alarms and the skipped files."""
        output, detector = self.output, self.detector
        shown = show * (top or SHOWN)
        with ScoringViewers(self.files, self.wanted, assets=assets, show=shown) as viewers:
            with output.progress() as on_progress:
                report = self._scored(on_progress, viewers.on_image)
            tally, alarms = self._judged(report.images, report.threshold, report.skipped)
            report = dataclasses.replace(report, alarms=alarms)
            printed = first_images(report, top, None if output.as_json else TABLE_ROWS)
            failure = first_failure(
                lambda: viewers.write(report, detector),
                lambda: viewers.write_page(report, detector, self.paths),
                lambda: self._record(tally),
            )
            # A full disk does not take the table; JSON is printed only when all is well.
            if failure is None or not output.as_json:
                output.emit(printed)
            if failure is not None:
                raise failure
            if report.warning:
                output.caution(report.warning)
            viewers.show(output)
        return alarms, report.skipped

    def _scored(self, on_progress: OnProgress, on_image: OnImage | None) -> ScoreReport:
        elsewhere = None
        if self.engine == "ray":
            from anoscan.scale.ray_scoring import RayScoring

            if on_image is not None:
                raise UsageError("--engine ray draws no pictures: leave out .coco.json.")
            first = next(iter(self.wanted.files), None)
            shards = None if first is None else first.with_name(f"{first.stem}-shards")
            elsewhere = RayScoring(self.workers, shards)
        return self.detector.score_files(
            self.files,
            self.request,
            self.views,
            on_progress=on_progress,
            on_image=on_image,
            elsewhere=elsewhere,
        )

    def _record(self, tally: Tally | None) -> None:
        if tally is not None:
            self.wanted.record(tally, self.detector.reference, self.paths)

    def _judged(
        self, images: Sequence[ImageScore], threshold: Threshold, skipped: Sequence[Skipped]
    ) -> tuple[Tally | None, tuple[Alarm, ...]]:
        """Return the tally of all images and the alarms; None and () where none are wanted."""
        if not self.rules and self.wanted.history is None:
            return None, ()
        from anoscan.report.alarms import Tally

        tally = Tally.of(threshold, images, len(skipped))
        return tally, tuple(rule.judge(tally) for rule in self.rules)

    def print_each(self, as_csv: bool) -> tuple[Sequence[Alarm], Sequence[Skipped]]:
        """Print each image as it is scored; return the alarms and the skipped files."""
        from anoscan.cli.output import CsvWriter
        from anoscan.core.results import Skipped
        from anoscan.model.judge import nothing_readable
        from anoscan.report.alarms import Tally

        output, detector, request = self.output, self.detector, self.request
        table = CsvWriter(detector.score_terms(request.score))
        write = table.write if as_csv else output.line
        tally, skipped = Tally(detector.threshold(request)), []
        with output.progress(streams=True) as on_progress:
            for outcome in detector.stream(
                self.files, request, self.views, on_progress=on_progress
            ):
                if isinstance(outcome, Skipped):
                    output.unreadable(outcome)
                    skipped.append(outcome)
                    continue
                write(outcome)
                tally.add(outcome)
        if skipped and not tally.scored:
            raise nothing_readable(skipped)
        if as_csv:
            table.begin()  # the header stands even where no image follows
        tally.skipped = len(skipped)
        self._record(tally)
        return [rule.judge(tally) for rule in self.rules], skipped


def _check_engine(engine: str, **others: object) -> None:
    """Refuse an engine that does not exist, and what Ray does not do."""
    if engine not in ("local", "ray"):
        raise UsageError(f"--engine must be local or ray. Got {engine!r}.")
    for name, value in others.items() if engine == "ray" else ():
        if value:
            given = "--jsonl and --csv" if name == "streams" else f"--{name}"
            raise UsageError(f"--engine ray ranks numbers: not with {given}.")


def _rules(texts: Sequence[str]) -> list[Rule]:
    """Read the rules of --fail-if; each counts once."""
    if not texts:
        return []
    from anoscan.report.alarms import Rule

    return list(dict.fromkeys(Rule.of(text) for text in texts))


# Peak memory of score --json, measured at 30,000 and 60,000 images with paths of 50 characters: the
# program and the model, and for each image its path, its result, and what is written of it. A run
# of 1,000,000 images had its peak at 1.54 GB.
_BYTES, _BYTES_AN_IMAGE, _BYTES_A_NEIGHBOUR = 650_000_000, 890, 200
_BYTES_MORE = {"residuals": 240, "maps": 570, "report": 3_550, "coco": 220}
_MOST_BYTES = 2_000_000_000


def memory_warning(images: int, kept: Sequence[str], nearest: int) -> str | None:
    """Return a warning where a ranking may need more than 2 GB of memory, else None.

    `kept` are names of options, of which each image has a path or a picture. `nearest` is the
    number of training images that are named with each image.
    """
    each = _BYTES_AN_IMAGE + sum(_BYTES_MORE[name] for name in kept) + nearest * _BYTES_A_NEIGHBOUR
    if (needed := _BYTES + images * each) <= _MOST_BYTES:
        return None
    return (
        f"to rank {images:,} images takes about {needed / 1e9:.1f} GB of memory. --jsonl and --csv "
        "print each image as it is scored, in little memory."
    )


def beside(page: Path) -> Path:
    """Return the folder of the pictures that are kept beside a page."""
    from anoscan.report.html_page import assets_of

    return assets_of(page)
