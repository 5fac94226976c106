"""The command ``anoscan trend``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from anoscan.cli.options import OUTPUT, Json, Quiet, option, output_of


def trend(
    history: Annotated[
        Path, typer.Argument(metavar="HISTORY", help="File that score --append wrote.")
    ],
    last: Annotated[
        int, typer.Option(min=1, metavar="N", help="Compare the last N runs with earlier ones.")
    ] = 7,
    plot: Annotated[
        Path | None,
        option(
            metavar="FILE", help="Draw alarms and scores of all runs there, as PNG.", panel=OUTPUT
        ),
    ] = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Show past runs, and say whether alarms or scores drift.

    Example: anoscan trend history.csv --plot trend.png
    """
    from anoscan.cli import trend_table
    from anoscan.core.files import check_writable
    from anoscan.report import plots
    from anoscan.report import trend as job

    output = output_of(as_json, quiet)
    if plot is not None:
        plots.check("--plot")
        check_writable(plot, "--plot")
    report = job.report(history, last)
    if plot is not None:
        plots.write_trend(report, plot)
    output.emit(report, trend_table.render)
    if plot is not None:
        output.note(f"plot: {plot}")
