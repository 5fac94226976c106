"""Tables of the store: its models, and the history of one."""

from __future__ import annotations

from collections.abc import Iterator

from rich.console import RenderableType
from rich.text import Text

from anoscan.cli import thresholds
from anoscan.cli.cells import NameCell, cell, table
from anoscan.core import results
from anoscan.core.channels import channels_in_words
from anoscan.core.files import printable


def models(report: results.ModelsReport) -> Iterator[RenderableType]:
    """Yield the parts of ``anoscan models list``."""
    if not report.models:
        yield Text("no models yet: anoscan train FOLDER makes one")
    listed = table("name", "architecture", "size", "images", "MB", "trained", "kept")
    broken = [model for model in report.models if model.problem]
    for model in report.models:
        if not model.problem:
            listed.add_row(
                NameCell(f"{model.name} *" if model.default else model.name),
                cell(model.architecture or "-"),
                f"{model.size or '-'} {channels_in_words(model.channels)}",
                "-" if model.images is None else f"{model.images:,}",
                _mb(model.bytes),
                (model.trained_at or "-")[:10],
                f"{model.kept or '-'}",
            )
    for column in listed.columns[1:]:
        column.no_wrap = True
    if listed.row_count:
        yield listed
    yield from _default(report)
    if size := sum(model.kept_bytes for model in report.models):
        yield Text(
            f"kept: earlier versions ({_mb(size)} MB), which anoscan models restore brings back",
            "dim",
        )
    for model in broken:
        yield f"cannot be used: {printable(model.name)}: {printable(model.problem or '')}"
    for gone in report.removed:
        yield (
            f"removed, and kept for anoscan models restore: {printable(gone.name)} "
            f"({gone.kept}, {_mb(gone.kept_bytes)} MB)"
        )


def _default(report: results.ModelsReport) -> Iterator[RenderableType]:
    if report.pinned is not None and not any(model.pinned for model in report.models):
        name = printable(report.pinned)
        yield Text(f"the pinned model {name} is not there: anoscan models use pins another", "red")
    elif any(model.default and not model.problem for model in report.models):
        why = "trained last" if report.pinned is None else "pinned by anoscan models use"
        yield Text(f"* {why}: what commands use without --model", "dim")


def history(report: results.HistoryReport) -> Iterator[RenderableType]:
    """Yield the parts of ``anoscan models history``."""
    gone = "" if report.exists else "; it is removed"
    yield f"model: {printable(report.name)} ({printable(report.path)}){gone}"
    if not report.events:
        yield Text("what was done to it is not known: it is older than its history, or was copied")
    listed = table("when (UTC)", "what", "by", "images", "threshold", "rate", "from")
    for event in report.events:
        source = " ".join(
            filter(None, [", ".join(event.folders), event.note and f"({event.note})"])
        )
        rate = event.false_alarm_rate
        listed.add_row(
            _minute(event.at),
            cell(event.action),
            cell(event.by or "-"),
            "-" if event.images is None else f"{event.images:,}",
            "-" if event.threshold is None else f"{event.threshold:.3f}",
            "-" if rate is None else thresholds.percent(rate),
            NameCell(source or "-"),
        )
    for column in listed.columns[:6]:
        column.no_wrap = True
    if listed.row_count:
        yield listed
    if report.kept:
        yield Text("kept, the oldest first; anoscan models restore goes back from the last one:")
    for version in report.kept:
        when = (
            f"after {version.action}, taken back" if version.undone else f"before {version.action}"
        )
        yield f"  {when} {_minute(version.at)}: {_mb(version.bytes)} MB"


def _minute(at: str) -> str:
    """Return a time such as 2026-03-01T12:00:00Z to the minute."""
    return printable(at)[:16].replace("T", " ")


def _mb(size: int) -> str:
    return f"{size / 1e6:.1f}"
