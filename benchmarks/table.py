"""Tables of kept results: ``python -m benchmarks.table`` writes them into docs/benchmarks.md."""

from __future__ import annotations

import json
import re
import sys
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.cells import RESULTS

DOCUMENT = Path(__file__).parent.parent / "docs" / "benchmarks.md"
MARK = re.compile(
    r"(<!-- (table|terms|ablation|curve|lineage|seeds|order|search): (\S+) -->\n).*?(<!-- end -->)",
    re.DOTALL,
)


def load(data: str) -> dict[str, dict[str, list[dict[str, Any]]]]:
    """Results of a set: method -> class -> one result a seed."""
    found: dict[str, dict[str, list[dict[str, Any]]]] = defaultdict(lambda: defaultdict(list))
    for path in sorted((RESULTS / data).glob("*/*.json")):
        result = json.loads(path.read_text(encoding="utf-8"))
        found[_label(result)][result["cls"]].append(result)
    return found


def _label(result: dict[str, Any]) -> str:
    if result["data"].startswith("lineage"):  # the row's name says it
        return str(result["method"])
    changed = ", ".join(f"{key} {value}" for key, value in result["settings"])
    return f"{result['method']}, {changed}" if changed else str(result["method"])


def _plain(classes: Iterable[str]) -> list[str]:
    """Classes as they are: ``0.first50`` and the like have a table of their own."""
    return sorted(cls for cls in set(classes) if "." not in cls)


def table(data: str) -> str:
    """Markdown table of a set: mean AUROC over seeds for each class, then over classes."""
    found = load(data)
    classes = _plain(cls for by_class in found.values() for cls in by_class)
    found = {method: rows for method, rows in found.items() if _plain(rows)}
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
    by_class = {cls: by_class[cls] for cls in _plain(by_class)}
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
    classes = _plain(by_class)
    names = sorted({name for c in classes for r in by_class[c] for name in r["auroc_by_term"]})
    lines = [f"| {data} | " + " | ".join(classes) + " | mean |", "|---" * (len(classes) + 2) + "|"]
    lines.append(_term_row("**score**", [[r["auroc"] for r in by_class[c]] for c in classes]))
    for name in names:
        cells = [
            [r["auroc_by_term"][name] for r in by_class[c] if name in r["auroc_by_term"]]
            for c in classes
        ]
        lines.append(_term_row(name, cells))
    return "\n".join(lines) + "\n"


def lineage(data: str) -> str:
    """Markdown table of a set's rows of `benchmarks.lineage`, one choice changed in each.

    Starred figures are of a default score that `OF_TODAY` did not count in yet.
    """
    found = load(f"lineage/{data}")
    classes = sorted({cls for by_class in found.values() for cls in by_class})
    titles = [data, *classes, "mean", "sd over seeds", *_ALONE, "PCA", *_HEALTH]
    titles += ["seeds", "CPU s"]
    names = sorted(found, key=lambda name: (name != "default", name))
    return _markdown(titles, [_lineage_row(name, found[name], classes) for name in names])


OF_TODAY = "prototype"  # the term that came last
_ALONE = ("paper", "anogan", "pixel", "latent")
_HEALTH = ("diversity", "reconstruction")


def _lineage_row(
    name: str, by_class: dict[str, list[dict[str, Any]]], classes: list[str]
) -> list[str]:
    *head, seeds, seconds = _row(name, by_class, classes).strip("| ").split(" | ")
    older = [
        any(OF_TODAY not in row["auroc_by_term"] for row in by_class.get(cls, []))
        for cls in classes
    ]
    # Behind the name: a figure a class, their mean, its spread.
    for place, starred in enumerate([*older, any(older)], start=1):
        head[place] += "\\*" if starred and head[place] != "-" else ""
    keys = [("auroc_by_term", term) for term in _ALONE]
    keys += [("auroc_of_own_baselines", "pca"), *(("health_values", check) for check in _HEALTH)]
    # Over classes of means over seeds: not every class has as many seeds.
    means = [
        np.mean([np.mean([r[part][name] for r in rows]) for rows in by_class.values()])
        for part, name in keys
    ]
    return [*head, *(f"{mean:.3f}" for mean in means), seeds, seconds]


def seeds(names: str) -> str:
    """Markdown table of rows of `benchmarks.lineage` over seeds, for one class of each set.

    `names` are classes as mnist/8, separated by commas. A row is compared with the default of the
    same seed, which has the same images: the mean difference over the classes, and its standard
    deviation over the seeds that all of them have.
    """
    wanted = [name.split("/") for name in names.split(",")]
    found = {data: load(f"lineage/{data}") for data, _ in wanted}
    methods = sorted({method for by_method in found.values() for method in by_method})
    by_row = {
        method: [_by_seed(found[data][method][cls]) for data, cls in wanted] for method in methods
    }
    usual = by_row.get("default", [])
    lines = []
    for method, cells in sorted(by_row.items(), key=lambda row: (row[0] != "default", row[0])):
        shared = sorted(set.intersection(*map(set, [*cells, *usual])))
        if len(shared) > 1:
            spreads = [_spread([cell[seed] for seed in shared]) for cell in cells]
            lines.append([method, *spreads, _gain(cells, usual, shared), str(len(shared))])
    return _markdown(["row", *names.split(","), "to the default", "seeds"], lines)


def _by_seed(results: list[dict[str, Any]]) -> dict[int, float]:
    """AUROC of today's default score by seed."""
    return {r["seed"]: r["auroc"] for r in results if OF_TODAY in r["auroc_by_term"]}


def _gain(cells: list[dict[int, float]], usual: list[dict[int, float]], seeds: list[int]) -> str:
    """How much more than the default of the same seed a row finds, over classes, then seeds."""
    if cells == usual:
        return "-"
    pairs = list(zip(cells, usual, strict=True))
    gains = [np.mean([cell[seed] - of[seed] for cell, of in pairs]) for seed in seeds]
    return f"{np.mean(gains):+.3f} ± {np.std(gains, ddof=1):.3f}"


_ORDER = {
    "default": ("`izi_f`", "`ae`"),
    "vae": ("`izi_f`", "`vae`"),
    "izi": ("`izi`", "`ae`"),
    "ziz": ("`ziz`", "`ae`"),
}


def order(names: str) -> str:
    """Markdown table of the ways to learn an encoder on one game: `paper` score, reconstruction.

    `names` are classes as mnist/8, separated by commas. Behind ± is the standard deviation over
    seeds, where there are several.
    """
    found = [load(f"lineage/order/{name.partition('/')[0]}") for name in names.split(",")]
    classes = [name.partition("/")[2] for name in names.split(",")]
    rows = []
    for row, choices in _ORDER.items():
        cells = [rows_of[row].get(cls, []) for rows_of, cls in zip(found, classes, strict=True)]
        scores = [_spread([r["auroc_by_score"]["paper"] for r in seeds]) for seeds in cells]
        missed = [_spread([r["health_values"]["reconstruction"] for r in seeds]) for seeds in cells]
        rows.append([*choices, *scores, *missed, str(min(map(len, cells)))])
    titles = [f"{what} {name}" for what in ("`paper`", "error") for name in names.split(",")]
    return _markdown(["mapping", "encoder", *titles, "seeds"], rows)


def _spread(values: list[float]) -> str:
    if len(values) < 2:
        return f"{values[0]:.3f}" if values else "-"
    return f"{np.mean(values):.3f} ± {np.std(values, ddof=1):.3f}"


def search(data: str) -> str:
    """Markdown tables of the searches: AUROC and steps by mapping, and CPU seconds an image."""
    by_class = load(f"lineage/{data}").values()
    found = [result for rows in by_class for results in rows.values() for result in results]
    steps = sorted({n for r in found for m in r["mappings"].values() for n in m.get("steps", ())})
    titles = ["set", "mapping", "AUROC anogan", "AUROC paper"]
    titles += [f"loss (residual) at step {n}" for n in steps]
    rows = [
        [result["cls"], name, *_mapping_cells(mapping, steps)]
        for result in found
        for name, mapping in result["mappings"].items()
    ]
    clock = ["set", *_CLOCK, "one by one / batched", "one by one / encoder"]
    return _markdown(titles, rows) + "\n" + _markdown(clock, [_clock_cells(r) for r in found])


def _mapping_cells(mapping: dict[str, Any], steps: list[int]) -> list[str]:
    falls = {}
    if "steps" in mapping:
        figures = zip(mapping["loss"], mapping["residual"], strict=True)
        falls = dict(zip(mapping["steps"], figures, strict=True))
    aurocs = [f"{mapping['auroc'][score]:.3f}" for score in ("anogan", "paper")]
    return aurocs + ["{:.1f} ({:.1f})".format(*falls[n]) if n in falls else "-" for n in steps]


_CLOCK = {
    "search one by one, CPU s an image": "search_one_by_one",
    "search batched": "search_in_batches",
    "refine batched": "refine_in_batches",
    "encoder batched": "encoder_in_batches",
}


def _clock_cells(result: dict[str, Any]) -> list[str]:
    clock = result["seconds_an_image"]
    ratios = [
        clock["search_one_by_one"] / clock[name]
        for name in ("search_in_batches", "encoder_in_batches")
    ]
    seconds = [f"{clock[name]:.2g}" for name in _CLOCK.values()]
    return [result["cls"], *seconds, f"{ratios[0]:.1f}", f"{ratios[1]:,.0f}"]


def _markdown(titles: list[str], rows: list[list[str]]) -> str:
    """Table; nothing where there are no rows yet."""
    if not rows:
        return ""
    lines = ["| " + " | ".join(titles) + " |", "|---" * len(titles) + "|"]
    lines += ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join(lines) + "\n"


def _term_row(name: str, cells: list[list[float]]) -> str:
    if not all(cells):
        figures = [f"{np.mean(values):.3f}" if values else "-" for values in cells]
        return f"| {name} | {' | '.join(figures)} | - |"
    means = [float(np.mean(values)) for values in cells]
    figures = [f"{mean:.3f}" for mean in [*means, float(np.mean(means))]]
    return f"| {name} | {' | '.join(figures)} |"


def ablation(names: str) -> str:
    """Markdown table: the score without one of its parts or with one more, mean over classes.

    Each figure is the mean difference to the score as it is, and its standard deviation over
    classes; of a class, the mean over its seeds.
    """
    cells = {
        data: [rows for c, rows in load(data).get("anoscan", {}).items() if "." not in c]
        for data in names.split(",")
    }
    cells = {data: classes for data, classes in cells.items() if classes}
    variants = sorted(
        {v for found in cells.values() for rows in found for r in rows for v in _variants(r)}
    )
    lines = [f"| score | {' | '.join(cells)} |", "|---" * (len(cells) + 1) + "|"]
    means = [
        f"{np.mean([np.mean([r['auroc'] for r in rows]) for rows in classes]):.3f}"
        for classes in cells.values()
    ]
    lines.append(f"| **as it is** | {' | '.join(means)} |")
    for variant in variants:
        figures = []
        for classes in cells.values():
            gains = [
                np.mean([_variants(r)[variant] - r["auroc"] for r in having])
                for rows in classes
                if (having := [r for r in rows if variant in _variants(r)])
            ]
            figures.append(f"{np.mean(gains):+.3f} ± {np.std(gains):.3f}" if gains else "-")
        lines.append(f"| {variant} | {' | '.join(figures)} |")
    return "\n".join(lines) + "\n"


def _variants(cell: dict[str, Any]) -> dict[str, float]:
    found: dict[str, float] = cell["auroc_of_ablation"]
    return found


def curve(data: str) -> str:
    """Markdown table of changed classes: fewer training images, or anomalies among them."""
    found = load(data)
    changed = sorted(
        {cls for by_class in found.values() for cls in by_class if "." in cls},
        key=lambda cls: (
            cls.partition(".")[0],
            cls.partition(".")[2][:5],
            int(cls.split(".")[1][5:]),
        ),
    )
    if not changed:
        return ""
    lines = [f"| {data} | {' | '.join(changed)} |", "|---" * (len(changed) + 1) + "|"]
    for method, by_class in sorted(found.items()):
        cells = [by_class.get(cls, []) for cls in changed]
        if any(cells):
            figures = [
                f"{np.mean([r['auroc'] for r in rows]):.3f}" if rows else "-" for rows in cells
            ]
            lines.append(f"| {method} | {' | '.join(figures)} |")
    return "\n".join(lines) + "\n"


def _mean(by_class: dict[str, list[dict[str, Any]]], classes: list[str]) -> float:
    values = [np.mean([r["auroc"] for r in by_class[c]]) for c in classes if by_class.get(c)]
    return float(np.mean(values)) if values else 0.0


def main() -> None:
    """Rewrite every table between its marks; ``--check`` only says whether any would change."""
    text = DOCUMENT.read_text(encoding="utf-8")
    kinds = {
        "table": table,
        "terms": terms,
        "ablation": ablation,
        "curve": curve,
        "lineage": lineage,
        "seeds": seeds,
        "order": order,
        "search": search,
    }
    fresh = MARK.sub(lambda mark: mark[1] + kinds[mark[2]](mark[3]) + mark[4], text)
    if "--check" in sys.argv:
        sys.exit("docs/benchmarks.md is not up to date" if fresh != text else 0)
    DOCUMENT.write_text(fresh, encoding="utf-8")


if __name__ == "__main__":
    main()
