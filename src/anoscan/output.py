"""The only printer: results on stdout, everything else on stderr.

File names are data here: never markup, never able to move a cursor, never a formula.
"""

from __future__ import annotations

import csv
import json
import os
import shlex
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import IO, TYPE_CHECKING, Any

from rich.console import Console, RenderableType
from rich.table import Table
from rich.text import Text

from anoscan import results
from anoscan.errors import AnoscanError

if TYPE_CHECKING:
    from rich.progress import Progress as Bars

    from anoscan.training import Progress

SKIPPED_SHOWN = 5
LINE_SECONDS = 10.0  # between lines of progress in a log
CSV_COLUMNS = ("path", "score", "p_value", "verdict", "rank", "q_value", "residual")
_VERDICT_STYLES = {"ok": "green", "warn": "yellow", "fail": "red"}
_STAGES = {
    "reading": "reading images",
    "gan": "learning normal",
    "encoder": "learning to map",
    "scoring": "scoring",
}
_LOSSES = {"discriminator": "D", "generator": "G", "encoder": "E"}
_FORMULA_STARTS = ("=", "+", "-", "@", "\t", "\r", "\n")
# What a pipe gets: a table row is one line there, however long its file name is.
_NEVER_WRAP = 32_767


def encodable(name: str) -> str:
    """File name with bytes that are not UTF-8 written as ``\\xff``."""
    return "".join(f"\\x{ord(c) - 0xDC00:02x}" if "\udc80" <= c <= "\udcff" else c for c in name)


def printable(name: str) -> str:
    """File name without control characters or broken Unicode: shown, never obeyed."""
    return "".join(
        c if c.isprintable() else c.encode("unicode_escape").decode() for c in encodable(name)
    )


def defused(cell: str) -> str:
    """CSV cell that no spreadsheet runs as a formula."""
    return f"'{cell}" if cell.startswith(_FORMULA_STARTS) else cell


class Output:
    """Both streams of one command.

    Parameters
    ----------
    as_json : bool
        Print results as one JSON document instead of tables.
    quiet : bool
        Leave out notes and progress; warnings and errors stay.
    """

    def __init__(self, *, as_json: bool = False, quiet: bool = False) -> None:
        self.as_json, self.quiet = as_json, quiet
        self._out = _console(sys.stdout)
        self._err = _console(sys.stderr)

    # --- stderr ---------------------------------------------------------------------------------

    def note(self, message: str) -> None:
        """Say something that a user may want to know."""
        if not self.quiet:
            self._err.print(printable(message), soft_wrap=True)

    def warn(self, message: str) -> None:
        """Say something that a user should know."""
        line = Text("Warning: ", style="yellow").append(printable(message), "default")
        self._err.print(line, soft_wrap=True)

    def error(self, error: AnoscanError) -> None:
        """Say what went wrong, in one line, and what to do."""
        line = Text("Error: ", style="red").append(printable(error.message), "default")
        if error.hint:
            line.append(f" {printable(error.hint)}", "default")
        self._err.print(line, soft_wrap=True)

    def skipped(self, skipped: Sequence[results.Skipped]) -> None:
        """List files that could not be read: the first few, and how many more."""
        if not skipped:
            return
        self.warn(f"{len(skipped)} image{'s' * (len(skipped) > 1)} could not be read:")
        for item in skipped[:SKIPPED_SHOWN]:
            line = f"  {printable(item.path)}: {printable(item.reason)}"
            self._err.print(line, soft_wrap=True)
        if (more := len(skipped) - SKIPPED_SHOWN) > 0:
            self._err.print(f"  and {more} more (all are in --json)", soft_wrap=True)

    def unreadable(self, item: results.Skipped) -> None:
        """Name one file that could not be read, where no list of them follows."""
        self.warn(f"{item.path} could not be read: {item.reason}")

    @contextmanager
    def progress(self, *, streams: bool = False) -> Iterator[Callable[[Progress], None]]:
        """Show training or scoring progress; without a terminal, a line now and then.

        Parameters
        ----------
        streams : bool
            Results are printed meanwhile: on a terminal they are progress enough.
        """
        if self.quiet or (streams and sys.stdout.isatty()):
            yield lambda progress: None
        elif not sys.stderr.isatty():
            yield Lines(self.note)
        else:
            with _bars(self._err) as bars:
                yield _Bars(bars, self.note)

    # --- stdout ---------------------------------------------------------------------------------

    def emit(self, report: Any) -> None:
        """Print a result: its JSON document, or tables made for a person."""
        if self.as_json:
            self.document(results.to_json(report))
        else:
            self._show(_RENDERERS[type(report)](report))

    def model(self, document: dict[str, Any]) -> None:
        """Print all that is known of a model: as JSON, or as a table."""
        if self.as_json:
            self.document(document)
        else:
            self._show(_model(document))

    def document(self, value: Any) -> None:
        """Print one JSON document."""
        text = json.dumps(value, indent=2, allow_nan=False, ensure_ascii=True)
        sys.stdout.write(text + "\n")
        sys.stdout.flush()

    def line(self, image: results.ImageScore) -> None:
        """Print one image as a line of JSON."""
        text = json.dumps(results.to_json(image), allow_nan=False, ensure_ascii=True)
        sys.stdout.write(text + "\n")
        sys.stdout.flush()

    def text(self, message: str) -> None:
        """Print plain text as a result."""
        self._show([message])

    def _show(self, parts: Iterable[RenderableType]) -> None:
        for part in parts:
            # Plain strings hold paths and commands, to be copied: the terminal may wrap them.
            self._out.print(part, soft_wrap=isinstance(part, str))


def _console(stream: IO[str]) -> Console:
    width = None if stream.isatty() or "COLUMNS" in os.environ else _NEVER_WRAP
    return Console(file=stream, width=width, markup=False, highlight=False, emoji=False)


class CsvWriter:
    """Images as CSV rows on stdout, one as soon as it is scored, the header before the first."""

    def __init__(self, terms: Sequence[str], stream: IO[str] | None = None) -> None:
        self._stream = stream or sys.stdout
        self._terms = terms
        self._clean = printable if self._stream.isatty() else encodable
        self._writer = csv.writer(self._stream, lineterminator="\n")
        self._begun = False

    def write(self, image: results.ImageScore) -> None:
        """Write one row; numbers at full precision, empty where there is none."""
        if not self._begun:
            self._writer.writerow([*CSV_COLUMNS, *self._terms])
            self._begun = True
        values = [getattr(image, column) for column in CSV_COLUMNS]
        values += [image.terms.get(term) for term in self._terms]
        self._writer.writerow([self._cell(value) for value in values])
        self._stream.flush()

    def _cell(self, value: Any) -> str:
        if value is None:
            return ""
        return defused(self._clean(value)) if isinstance(value, str) else repr(value)


class Lines:
    """Progress for a log: one line at the end of a stage, and one now and then before.

    Parameters
    ----------
    note : callable
        Prints a line.
    clock : callable
        Seconds.
    """

    def __init__(
        self, note: Callable[[str], None], clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._note, self._clock = note, clock
        self._told = clock()

    def __call__(self, progress: Progress) -> None:
        """Take a report of how far a stage is."""
        if progress.note:
            self._note(f"{_STAGES[progress.stage]}: {progress.note}")
        now = self._clock()
        if progress.images != progress.total_images and now - self._told < LINE_SECONDS:
            return
        self._told = now
        of = f" of {progress.total_images:,}" if progress.total_images else ""
        facts = " ".join(_facts(progress))
        self._note(f"{_STAGES[progress.stage]}: {progress.images:,}{of} images {facts}".rstrip())


def _bars(console: Console) -> Bars:
    # Not at the top: this import takes longer than an error message should.
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn
    from rich.progress import TimeRemainingColumn as TimeLeft

    return Progress(
        TextColumn("{task.description}"),
        BarColumn(bar_width=12),
        TaskProgressColumn(),
        TimeLeft(compact=True, elapsed_when_finished=True),
        TextColumn("{task.fields[facts]}"),
        console=console,
        # Redirected results would leave by stderr, where the bars are.
        redirect_stdout=False,
        redirect_stderr=False,
    )


class _Bars:
    """Progress for a terminal: one bar a stage, 80 columns at most."""

    def __init__(self, bars: Bars, note: Callable[[str], None]) -> None:
        self._bars, self._note = bars, note
        self._tasks: dict[str, Any] = {}

    def __call__(self, progress: Progress) -> None:
        stage = progress.stage
        if stage not in self._tasks:
            total = progress.total_images or None
            self._tasks[stage] = self._bars.add_task(_STAGES[stage], total=total, facts="")
        if progress.note:
            self._note(f"{_STAGES[stage]}: {progress.note}")
        facts = " ".join(_facts(progress))
        self._bars.update(self._tasks[stage], completed=progress.images, facts=facts)


def _facts(progress: Progress) -> Iterator[str]:
    if progress.images_per_second:
        yield f"{progress.images_per_second:,.0f}/s"
    for name, value in progress.losses.items():
        if name in _LOSSES:
            yield f"{_LOSSES[name]} {value:.2f}"


# --- reports for people -----------------------------------------------------------------------


def _health(report: results.HealthReport) -> Iterator[RenderableType]:
    yield Text.assemble("health: ", (report.verdict, _VERDICT_STYLES[report.verdict]))
    yield _check_table(report.checks)


def _check_table(checks: Sequence[results.HealthCheck]) -> Table:
    table = Table(box=None, show_header=False, padding=(0, 1))
    for check in checks:
        table.add_row(
            Text(check.verdict, _VERDICT_STYLES[check.verdict]),
            Text(check.name),
            Text(printable(check.message), overflow="fold"),
        )
    return table


def _train(report: results.TrainReport) -> Iterator[RenderableType]:
    model, images = report.model, report.images
    yield f"model: {printable(model.name)} ({printable(model.path)})"
    yield (
        f"images: {images.trained:,} trained on, {images.held_out:,} held out, "
        f"{len(images.skipped):,} skipped; seen at {model.size}x{model.size}, "
        f"{'grey' if model.channels == 1 else 'RGB'}"
    )
    yield (
        f"training: {model.architecture}, {model.objective}, {model.mapping}; "
        f"{report.seconds['total']:.0f} s on {report.device} ({report.precision})"
    )
    yield from _health(report.health)


def _score(report: results.ScoreReport) -> Iterator[RenderableType]:
    table = Table(box=None, padding=(0, 1), header_style="bold")
    table.add_column("rank", justify="right", no_wrap=True)
    table.add_column("score", justify="right", no_wrap=True)
    table.add_column("p-value", justify="right", no_wrap=True)
    table.add_column("verdict", no_wrap=True)
    table.add_column("image", overflow="fold")
    for image in report.images:
        table.add_row(
            str(image.rank),
            f"{image.score:.3f}",
            f"{image.p_value:.4f}",
            Text(image.verdict, "red" if image.verdict == "anomalous" else "green"),
            Text(printable(image.path), overflow="fold"),
        )
    yield table
    counts, threshold = report.counts, report.threshold
    yield (
        f"{counts['scored']:,} scored, {counts['anomalous']:,} anomalous (score above "
        f"{threshold.score:.3f}: a false-alarm rate of {threshold.effective_rate:.2g} on "
        f"{threshold.calibration_images:,} held-out normals), {counts['skipped']:,} skipped"
    )


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"


def _eval(report: results.EvalReport) -> Iterator[RenderableType]:
    images, at = report.images, report.at_threshold
    yield (
        f"{images.normal:,} normal and {images.anomalous:,} anomalous images; "
        f"{len(images.skipped):,} skipped, {images.missing:,} labels without an image, "
        f"{images.unlabelled:,} images without a label"
    )
    table = Table(box=None, padding=(0, 1), header_style="bold")
    table.add_column("detector")
    table.add_column("AUROC", justify="right")
    table.add_column("95 % interval", justify="right")
    table.add_column("average precision", justify="right")
    interval = report.auroc_ci95
    table.add_row(
        "anoscan",
        _number(report.auroc),
        "-" if interval is None else f"{interval[0]:.4f} to {interval[1]:.4f}",
        _number(report.average_precision),
    )
    for name, figures in report.baselines.items():
        table.add_row(f"baseline: {name.replace('_', ' ')}", _number(figures["auroc"]), "", "")
    yield table
    if report.undefined:
        yield f"undefined: {report.undefined}"
    yield (
        f"at the model's own threshold {at.score:.3f}: false-alarm rate "
        f"{_number(at.false_alarm_rate)}, recall {_number(at.recall)}, precision "
        f"{_number(at.precision)}, F1 {_number(at.f1)}"
    )


def _demo(report: results.DemoReport) -> Iterator[RenderableType]:
    yield from _train(report.train)
    yield ""
    yield from _score(report.score)
    yield ""
    yield from _eval(report.eval)
    folder = printable(report.output)
    yield ""
    yield f"pictures: {folder}/residuals, the most anomalous on {folder}/sheet.png"
    yield "next:"
    yield f"  anoscan score {folder}/queries --model {folder}/model.safetensors --top 10"
    yield f"  anoscan eval --labels {folder}/queries/labels.csv --model {folder}/model.safetensors"
    yield "  anoscan train YOUR_NORMAL_IMAGES"


def _models(report: results.ModelsReport) -> Iterator[RenderableType]:
    if not report.models:
        yield "no models yet: anoscan train FOLDER makes one"
        return
    table = Table(box=None, padding=(0, 1), header_style="bold")
    for column in ("name", "architecture", "objective", "size", "images", "MB", "by"):
        table.add_column(column, overflow="fold")
    for model in report.models:
        if model.problem:
            table.add_row(Text(printable(model.name)), Text(f"problem: {printable(model.problem)}"))
            continue
        kind = "grey" if model.channels == 1 else "RGB"
        table.add_row(
            Text(printable(model.name)),
            printable(model.architecture or "-"),
            printable(model.objective or "-"),
            f"{model.size} {kind}",
            f"{model.images or 0:,}",
            f"{model.bytes / 1e6:.1f}",
            printable(model.created_by or "-"),
        )
    yield table


def _doctor(report: results.DoctorReport) -> Iterator[RenderableType]:
    table = Table(box=None, show_header=False, padding=(0, 1))
    topics = {"machine": report.machine, "versions": report.versions, "store": report.store}
    if report.images is not None:
        topics["images"] = report.images
    for topic, facts in topics.items():
        for name, value in facts.items():
            table.add_row(
                topic, name.replace("_", " "), Text(printable(_plain(value)), overflow="fold")
            )
    yield table
    yield Text.assemble("verdict: ", (report.verdict, _VERDICT_STYLES[report.verdict]))
    yield _check_table(report.checks)


def _plain(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key}: {item}" for key, item in value.items()) or "none"
    return "none" if value is None else str(value)


_RENDERERS: dict[type, Callable[[Any], Iterator[RenderableType]]] = {
    results.TrainReport: _train,
    results.ScoreReport: _score,
    results.EvalReport: _eval,
    results.DemoReport: _demo,
    results.ModelsReport: _models,
    results.DoctorReport: _doctor,
}
