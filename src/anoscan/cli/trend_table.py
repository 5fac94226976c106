"""Show a history of runs as a table that fits 80 columns."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from anoscan.core import results
from anoscan.core.files import printable

ROWS = 20
_COLUMNS = {"time (UTC)": 16, "scored": 8, "anomalous": 9, "share": 7, "": 9, "median": 8}
_BAR = _COLUMNS[""]
_STYLES = {"steady": "green", "drift": "red", "unknown": "yellow"}


def render(report: results.TrendReport) -> Iterator[RenderableType]:
    """Yield the last runs, with a heading where model or threshold change, and the sentence."""
    shown = report.runs[-ROWS:]
    highest = max((run.share or 0.0 for run in shown), default=0.0)
    groups = itertools.groupby(shown, lambda run: (run.model, run.sha256, run.threshold))
    for number, ((name, sha256, threshold), runs) in enumerate(groups):
        yield Text(
            f"model {printable(name)} ({sha256[:8]}): anomalous is a score above {threshold:.3f}",
            "bold",
        )
        table = _table(header=number == 0)
        for run in runs:
            table.add_row(*_cells(run, highest))
        yield table
    if hidden := len(report.runs) - len(shown):
        yield Text(f"{hidden:,} earlier runs are not listed: --json has all", "dim")
    yield Text(report.message, _STYLES[report.verdict])


def _table(*, header: bool) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold", show_header=header)
    for name, width in (_COLUMNS | {"95 %": 8}).items():
        left = name in ("time (UTC)", "")
        table.add_column(name, justify="left" if left else "right", width=width, no_wrap=True)
    return table


def _cells(run: results.PastRun, highest: float) -> Iterator[Text | str]:
    yield run.time[:16].replace("T", " ")
    yield f"{run.scored:,}"
    yield f"{run.anomalous:,}"
    yield "-" if run.share is None else f"{100 * run.share:.1f} %"
    yield Text("█" * round(_BAR * (run.share or 0.0) / highest) if highest else "", "red")
    for score in (run.score_median, run.score_q95):
        yield "-" if score is None else f"{score:.3f}"
