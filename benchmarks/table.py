"""Tables of kept results: ``python -m benchmarks.table`` writes them into docs/benchmarks.md."""

from __future__ import annotations

import json
import re
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.cells import RESULTS

DOCUMENT = Path(__file__).parent.parent / "docs" / "benchmarks.md"
MARK = re.compile(r"(<!-- (table|terms): (\S+) -->\n).*?(<!-- end -->)", re.DOTALL)


def load(data: str) -> dict[str, dict[str, list[dict[str, Any]]]]:
    """Results of a set: method -> class -> one result a seed."""
    found: dict[str, dict[str, list[dict[str, Any]]]] = defaultdict(lambda: defaultdict(list))
    for path in sorted((RESULTS / data).glob("*/*.json")):
        result = json.loads(path.read_text(encoding="utf-8"))
        found[path.parent.name][result["cls"]].append(result)
    return found


def table(data: str) -> str:
    """Markdown table of a set: mean AUROC over seeds for each class, then over classes."""
    found = load(data)
    classes = sorted({cls for by_class in found.values() for cls in by_class})
    lines = [
        f"| {data} | " + " | ".join(classes) + " | mean | sd over seeds | seeds | CPU s |",
        "|---" * (len(classes) + 5) + "|",
    ]
    ordered = sorted(found.items(), key=lambda item: -_mean(item[1], classes))
    for method, by_class in ordered:
        lines.append(_row(method, by_class, classes))
    return "\n".join(lines) + "\n"


def _row(method: str, by_class: dict[str, list[dict[str, Any]]], classes: list[str]) -> str:
    cells = [
        f"{np.mean([r['auroc'] for r in by_class[cls]]):.3f}" if by_class.get(cls) else "-"
        for cls in classes
    ]
    complete = all(by_class.get(cls) for cls in classes)
    mean = f"{_mean(by_class, classes):.3f}" if complete else "-"
    seeds = min(len(results) for results in by_class.values())
    spreads = [
        np.std([r["auroc"] for r in rows], ddof=1) for rows in by_class.values() if len(rows) > 1
    ]
    spread = f"{np.mean(spreads):.3f}" if spreads else "-"
    seconds = np.mean([r["cpu_seconds"] for rows in by_class.values() for r in rows])
    name = f"**{method}**" if method == "anoscan" else method
    return f"| {name} | {' | '.join(cells)} | {mean} | {spread} | {seeds} | {seconds:.0f} |"


def terms(data: str) -> str:
    """Markdown table of what each term of the default detector reaches alone, by class."""
    by_class = load(data).get("anoscan", {})
    classes = sorted(by_class)
    names = sorted(
        {name for rows in by_class.values() for r in rows for name in r["auroc_by_term"]}
    )
    lines = [f"| {data} | " + " | ".join(classes) + " | mean |", "|---" * (len(classes) + 2) + "|"]
    lines.append(_term_row("**score**", [[r["auroc"] for r in by_class[c]] for c in classes]))
    for name in names:
        cells = [[r["auroc_by_term"][name] for r in by_class[c]] for c in classes]
        lines.append(_term_row(name, cells))
    return "\n".join(lines) + "\n"


def _term_row(name: str, cells: list[list[float]]) -> str:
    means = [float(np.mean(values)) for values in cells]
    figures = " | ".join(f"{mean:.3f}" for mean in [*means, float(np.mean(means))])
    return f"| {name} | {figures} |"


def _mean(by_class: dict[str, list[dict[str, Any]]], classes: list[str]) -> float:
    values = [np.mean([r["auroc"] for r in by_class[c]]) for c in classes if by_class.get(c)]
    return float(np.mean(values)) if values else 0.0


def main() -> None:
    """Rewrite every table between its marks; ``--check`` only says whether any would change."""
    text = DOCUMENT.read_text(encoding="utf-8")
    kinds = {"table": table, "terms": terms}
    fresh = MARK.sub(lambda mark: mark[1] + kinds[mark[2]](mark[3]) + mark[4], text)
    if "--check" in sys.argv:
        sys.exit("docs/benchmarks.md is not up to date" if fresh != text else 0)
    DOCUMENT.write_text(fresh, encoding="utf-8")


if __name__ == "__main__":
    main()
