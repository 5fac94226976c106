"""Keep the last result of each part, and write their table into ``docs/reliability.md``."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Any

from benchmarks import cells, markdown
from benchmarks.cells import Cell
from benchmarks.faults.campaign import Tally

DOCUMENT = Path(__file__).parents[2] / "docs" / "reliability.md"
_BEGIN, _END = "<!-- results -->\n", "<!-- end of results -->\n"


def keep(tally: Tally, seed: int) -> dict[str, Any]:
    """Keep the result of a part in place of an older one of the same seed."""
    command = f"python -m benchmarks.faults {shlex.join(sys.argv[1:])}"
    return cells.keep(Cell("faults/last", tally.part, seed, "anoscan"), tally.kept(), command)


def text() -> str:
    """Lay out the kept results, a row a part and seed, in the order of the parts."""
    rows = [
        [
            f"`{row['cls']}`" + (f" (seed {row['seed']})" if row["seed"] else ""),
            *(f"{row[count]:,}" for count in ("tried", "held", "isolated", "failed")),
            f"{row['wall_seconds']:,.0f}",
            f"{row['facts']['peak_mb']:,}",
            row["commit"],
        ]
        for row in cells.load("faults/*")
    ]
    titles = ["part", "tried", "held", "isolated", "failed", "seconds", "largest process, MB"]
    return markdown.table([*titles, "commit"], rows)


def table(*, check: bool = False) -> int:
    """Write the table into the document; with `check` only say whether it is up to date.

    Returns
    -------
    int
        1 when `check` finds another table, otherwise 0.
    """
    whole = DOCUMENT.read_text(encoding="utf-8")
    before, rest = whole.split(_BEGIN)
    _, after = rest.split(_END)
    fresh = f"{before}{_BEGIN}{text()}{_END}{after}"
    if not check:
        DOCUMENT.write_text(fresh, encoding="utf-8")
    return int(check and fresh != whole)
