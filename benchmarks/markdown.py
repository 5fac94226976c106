"""Write tables and their figures as Markdown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np


def table(titles: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Lay out a table; the text is empty when there are no rows."""
    if not rows:
        return ""
    lines = ["| " + " | ".join(titles) + " |", "|---" * len(titles) + "|"]
    lines += ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join(lines) + "\n"


def sections(found: Mapping[str, tuple[Sequence[str], Sequence[Sequence[str]]]]) -> str:
    """Lay out tables under their headings, given titles and rows of each; leave empty ones out."""
    tables = {heading: table(*of) for heading, of in found.items()}
    return headed(tables)


def headed(texts: Mapping[str, str]) -> str:
    """Put each text under its heading; leave empty ones out."""
    return "\n".join(f"## {heading}\n\n{text}" for heading, text in texts.items() if text)


def mean(values: Sequence[float]) -> str:
    """Show a mean, or a dash when there are no values."""
    return f"{np.mean(values):.3f}" if values else "-"


def spread(values: Sequence[float]) -> str:
    """Show a mean ± standard deviation, or only the mean when there are fewer than two values."""
    if len(values) < 2:
        return mean(values)
    return f"{mean(values)} ± {np.std(values, ddof=1):.3f}"
