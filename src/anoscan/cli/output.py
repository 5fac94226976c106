"""Print results on stdout, and everything else on stderr.

File names are printed so that they cannot act as markup, control codes or formulas.
"""

from __future__ import annotations

import csv
import json
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from rich.console import Console, RenderableType
from rich.text import Text

from anoscan.cli import tables
from anoscan.cli.signals import whole_line
from anoscan.core import results
from anoscan.core.errors import AnoscanError
from anoscan.core.files import defused, encodable, printable, replacing
from anoscan.core.progress import STAGES

if TYPE_CHECKING:
    from rich.progress import Progress as Bars

    from anoscan.cli.terminal import Gallery
    from anoscan.core.progress import Progress

Render = Callable[[Any], Iterator[RenderableType]]
SKIPPED_SHOWN = 5
LINE_SECONDS = 10.0  # time between lines of progress in a log
CSV_COLUMNS = ("path", "score", "p_value", "verdict", "rank", "q_value", "residual")
_LOSSES = {
    "discriminator": "discriminator",
    "generator": "generator",
    "rotation": "loss",
    "encoder": "encoder",
    "error": "error",
}
# Width for pipes and files, where each table row must stay one line.
_NEVER_WRAP = 32_767


class Output:
    """Both streams of one command, stdout and stderr.

    With `as_json`, results are printed as one JSON document instead of tables. With `quiet`, notes,
    cautions and progress are left out; other warnings and errors stay.
    """

    def __init__(self, *, as_json: bool = False, quiet: bool = False) -> None:
        self.as_json, self.quiet = as_json, quiet
        self._out = _console(sys.stdout)
        self._err = _console(sys.stderr)

    # --- stderr ---------------------------------------------------------------------------------

    def note(self, message: str) -> None:
        """Print a message that a user may want to know; quiet leaves it out."""
        if not self.quiet:
            self._err.print(printable(message), soft_wrap=True)

    def caution(self, message: str) -> None:
        """Warn of the model or of its results, which say it too; quiet leaves it out."""
        if not self.quiet:
            self.warn(message)

    def warn(self, message: str) -> None:
        """Print a warning."""
        line = Text("Warning: ", style="yellow").append(printable(message), "default")
        self._err.print(line, soft_wrap=True)

    def alarms(self, alarms: Sequence[results.Alarm]) -> None:
        """Print the rules that hold, and as notes those that do not, with their numbers."""
        for alarm in alarms:
            if alarm.holds:
                line = Text("Alarm: ", style="red").append(
                    f"{alarm.rule}: {alarm.detail}", "default"
                )
                self._err.print(line, soft_wrap=True)
            else:
                self.note(f"no alarm by {alarm.rule}: {alarm.detail}")

    def error(self, error: AnoscanError) -> None:
        """Print in one line what went wrong and what to do."""
        line = Text("Error: ", style="red").append(printable(error.message), "default")
        if error.hint:
            line.append(f" {printable(error.hint)}", "default")
        self._err.print(line, soft_wrap=True)

    def skipped(self, skipped: Sequence[results.Skipped]) -> None:
        """List the first files that could not be read, and count the others."""
        if not skipped:
            return
        self.warn(f"{len(skipped)} image{'s' * (len(skipped) > 1)} could not be read:")
        for item in skipped[:SKIPPED_SHOWN]:
            line = f"  {printable(item.path)}: {printable(item.reason)}"
            self._err.print(line, soft_wrap=True)
        if (more := len(skipped) - SKIPPED_SHOWN) > 0:
            self._err.print(f"  and {more} more (all are in --json)", soft_wrap=True)

    def unreadable(self, item: results.Skipped) -> None:
        """Warn of one file that could not be read, where no list follows."""
        self.warn(f"{item.path} could not be read: {item.reason}")

    @contextmanager
    def progress(self, *, streams: bool = False) -> Iterator[Callable[[Progress], None]]:
        """Yield a function that shows progress: bars on a terminal, otherwise a line at times.

        With `streams`, results are printed meanwhile. On a terminal they replace the bars.
        """
        if self.quiet or (streams and sys.stdout.isatty()):
            yield lambda progress: None
        elif not sys.stderr.isatty():
            yield Lines(self.note)
        else:
            with _bars(self._err) as bars:
                yield _Bars(bars, self.note)

    # --- stdout ---------------------------------------------------------------------------------

    def emit(self, report: Any, render: Render = tables.render) -> None:
        """Print a result as its JSON document, or as the tables that `render` yields of it."""
        if self.as_json:
            for part in results.json_parts(report):
                sys.stdout.write(part)
            sys.stdout.flush()
        else:
            self._show(render(report))

    def model(self, document: dict[str, Any]) -> None:
        """Print all metadata of a model as JSON, or as a table."""
        if self.as_json:
            self.document(document)
        else:
            self._show(tables.model(document))

    def document(self, value: Any) -> None:
        """Print one JSON document."""
        sys.stdout.write(results.json_text(value) + "\n")
        sys.stdout.flush()

    def save(self, report: Any, file: Path) -> None:
        """Write a result to a file as a JSON document; raise InputError where that fails."""
        with replacing(file) as stream:
            for part in results.json_parts(report):
                stream.write(part.encode("ascii"))

    def line(self, image: results.ImageScore) -> None:
        """Print one image as a line of JSON."""
        value = {"schema": results.IMAGE_SCHEMA} | results.to_json(image)
        text = json.dumps(value, allow_nan=False, ensure_ascii=True)
        with whole_line():
            sys.stdout.write(text + "\n")
            sys.stdout.flush()

    def gallery(self, gallery: Gallery) -> None:
        """Show pictures on a terminal, each below its path."""
        for path, picture in gallery.show(self._out.width):
            self._show(["", printable(path), picture])

    def text(self, message: str) -> None:
        """Print plain text as a result."""
        self._show([message])

    def _show(self, parts: Iterable[RenderableType]) -> None:
        for part in parts:
            # Users copy paths and commands from plain strings, so only the terminal wraps these.
            if isinstance(part, str) or self._out.file.isatty():
                self._out.print(part, soft_wrap=isinstance(part, str))
                continue
            with self._out.capture() as printed:
                self._out.print(part)
            # Rich fills the lines of a table with spaces, which have no use in a file or a pipe.
            lines = [line.rstrip() for line in printed.get().split("\n")]
            self._out.file.write("\n".join(lines))
            self._out.file.flush()


def _console(stream: IO[str]) -> Console:
    width = None if stream.isatty() or "COLUMNS" in os.environ else _NEVER_WRAP
    return Console(file=stream, width=width, markup=False, highlight=False, emoji=False)


class CsvWriter:
    """Writes images as CSV rows as soon as they are scored; the header precedes the first."""

    def __init__(self, terms: Sequence[str], stream: IO[str] | None = None) -> None:
        self._stream = stream or sys.stdout
        self._terms = terms
        self._clean = printable if self._stream.isatty() else encodable
        self._writer = csv.writer(self._stream, lineterminator="\n")
        self._begun = False

    def write(self, image: results.ImageScore) -> None:
        """Write one row; numbers have full precision, and missing values are empty."""
        values = [getattr(image, column) for column in CSV_COLUMNS]
        values += [image.terms.get(term) for term in self._terms]
        values.append("; ".join(image.mismatch) if image.mismatch else None)
        with whole_line():
            self.begin()
            self._writer.writerow([self._cell(value) for value in values])
            self._stream.flush()

    def begin(self) -> None:
        """Write the header, unless it is there."""
        if not self._begun:
            self._begun = True
            self._writer.writerow([*CSV_COLUMNS, *self._terms, "mismatch"])

    def _cell(self, value: Any) -> str:
        if value is None:
            return ""
        return defused(self._clean(value)) if isinstance(value, str) else repr(value)


class Lines:
    """Progress for a log: one line at the end of a stage, and one each `LINE_SECONDS` before.

    `note` prints a line, and `clock` returns the time in seconds.
    """

    def __init__(
        self, note: Callable[[str], None], clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._note, self._clock = note, clock
        self._scored = clock()

    def __call__(self, progress: Progress) -> None:
        """Print a line about the progress of a stage, if one is due."""
        if progress.note:
            self._note(_noted(progress))
            if not progress.images_per_second:  # it reports a note alone
                return
        now = self._clock()
        if progress.images != progress.total_images and now - self._scored < LINE_SECONDS:
            return
        self._scored = now
        of = f" of {progress.total_images:,}" if progress.total_images else ""
        facts = " ".join(_facts(progress))
        what = "parts" if progress.stage == "calibration" else "images"
        self._note(f"{STAGES[progress.stage]}: {progress.images:,}{of} {what} {facts}".rstrip())


def _bars(console: Console) -> Bars:
    # This import is not at the top, because it would delay error messages.
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn
    from rich.progress import TimeRemainingColumn as TimeLeft

    return Progress(
        TextColumn("{task.description}"),
        BarColumn(bar_width=8),
        TaskProgressColumn(),
        TimeLeft(compact=True, elapsed_when_finished=True),
        TextColumn("{task.fields[facts]}"),
        console=console,
        # Rich would send redirected results to stderr, where the bars are.
        redirect_stdout=False,
        redirect_stderr=False,
    )


class _Bars:
    """Progress for a terminal: each stage has one bar of at most 80 columns."""

    def __init__(self, bars: Bars, note: Callable[[str], None]) -> None:
        self._bars, self._note = bars, note
        self._tasks: dict[str, Any] = {}

    def __call__(self, progress: Progress) -> None:
        stage = progress.stage
        if stage not in self._tasks:
            total = progress.total_images or None
            self._tasks[stage] = self._bars.add_task(STAGES[stage], total=total, facts="")
        if progress.note:
            self._note(_noted(progress))
        facts = " ".join(_facts(progress))
        self._bars.update(self._tasks[stage], completed=progress.images, facts=facts)


def _noted(progress: Progress) -> str:
    """Return a note, after the name of its stage unless images are read or scored."""
    told = progress.note or ""
    return told if progress.stage in ("reading", "scoring") else f"{STAGES[progress.stage]}: {told}"


def _facts(progress: Progress) -> Iterator[str]:
    if progress.tiles is not None:
        yield f"tile {progress.tiles[0]:,} of {progress.tiles[1]:,}"
    if progress.images_per_second:
        yield f"{progress.images_per_second:,.0f}/s"
    for name, value in progress.losses.items():
        if name in _LOSSES:
            yield f"{_LOSSES[name]} {value:.3g}"  # those of a clipped critic are about 0.001
