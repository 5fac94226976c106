"""Tables for a terminal: their columns, and cells whose text no terminal runs as a code."""

from __future__ import annotations

from collections.abc import Sequence

from rich.cells import cell_len, chop_cells
from rich.console import Console, ConsoleOptions, RenderResult
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from anoscan.core.files import printable

_FEWEST = 12  # columns of a name, at least; a longer one is shortened


def table(*columns: str, right: Sequence[str] = ()) -> Table:
    """Return a table without lines; the columns that `right` names are aligned there."""
    made = Table(box=None, padding=(0, 2, 0, 0), header_style="bold", show_header=bool(columns))
    for column in columns:
        made.add_column(
            cell(column), justify="right" if column in right else "left", overflow="fold"
        )
    return made


def cell(value: str, style: str = "") -> Text:
    """Return a cell that is broken into lines where it is too long."""
    return Text(printable(value), style, overflow="fold")


class NameCell:
    """A cell with a name or path, which is shortened in the middle where it is too long.

    The beginning of a path and the name of the file are what people know it by. In a pipe or a file
    there is room for all of it.
    """

    def __init__(self, value: str, style: str = "") -> None:
        self.value, self.style = printable(value), style

    def __rich_measure__(self, console: Console, options: ConsoleOptions) -> Measurement:
        """Say how many columns the cell needs, and how many it would like."""
        wide = cell_len(self.value)
        return Measurement(min(wide, _FEWEST), wide)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Yield the text, shortened to the room that there is."""
        yield Text(shortened(self.value, options.max_width), self.style, overflow="fold")


def shortened(name: str, width: int) -> str:
    """Return a name in at most `width` columns of a terminal, with … for what its middle lacks."""
    if cell_len(name) <= width:
        return name
    if width < 3:
        return "…"
    tail = (width - 1) * 2 // 3  # the end of a path says more than its beginning
    end = chop_cells(name[::-1], tail)[0][::-1]
    return f"{chop_cells(name, width - 1 - tail)[0]}…{end}"
