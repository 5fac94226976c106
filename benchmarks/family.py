"""Lay out the results of `benchmarks.lineage`: the AnoGAN family, choice by choice."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import numpy as np

from benchmarks import markdown
from benchmarks.cells import load
from benchmarks.lineage import SETS
from benchmarks.one_class import Rows, row

OF_TODAY = "prototype"  # the term that was added last: older results do not have it
_ALONE = ("paper", "anogan", "pixel", "latent")
_HEALTH = ("diversity", "reconstruction")
_ORDER = {
    "default": ("`izi_f`", "`ae`"),
    "vae": ("`izi_f`", "`vae`"),
    "izi": ("`izi`", "`ae`"),
    "ziz": ("`ziz`", "`ae`"),
}
_CLOCK = {
    "search one by one, CPU s an image": "search_one_by_one",
    "search batched": "search_in_batches",
    "refine batched": "refine_in_batches",
    "encoder batched": "encoder_in_batches",
}


def by_row(data: str) -> dict[str, Rows]:
    """Group results of a set by row, then by class; the default is the first row.

    The name of a row says which choice it changes.
    """
    found: dict[str, Rows] = defaultdict(lambda: defaultdict(list))
    for result in sorted(load(f"lineage/{data}"), key=lambda r: r["method"] != "default"):
        found[result["method"]][result["cls"]].append(result)
    return found


def lineage(data: str) -> str:
    """Lay out the rows of a set, each of which changes one choice.

    Starred figures were measured before the term `OF_TODAY` was part of the default score.
    """
    found = by_row(data)
    classes = sorted({cls for rows in found.values() for cls in rows})
    titles = [data, *classes, "mean", "sd over seeds", *_ALONE, "PCA", *_HEALTH]
    titles += ["seeds", "CPU s"]
    return markdown.table(titles, [_lineage_row(*item, classes) for item in found.items()])


def _lineage_row(name: str, rows: Rows, classes: list[str]) -> list[str]:
    *head, seeds, seconds = row(name, rows, classes)
    older = [
        any(OF_TODAY not in result["auroc_by_term"] for result in rows.get(cls, []))
        for cls in classes
    ]
    # After the name, a row has a figure for each class, then their mean and its spread.
    for place, starred in enumerate([*older, any(older)], start=1):
        head[place] += "\\*" if starred and head[place] != "-" else ""
    keys = [("auroc_by_term", term) for term in _ALONE]
    keys += [("auroc_of_own_baselines", "pca"), *(("health_values", check) for check in _HEALTH)]
    # Means are taken over seeds first, because not every class has the same number of seeds.
    means = [
        np.mean([np.mean([r[part][key] for r in of]) for of in rows.values()]) for part, key in keys
    ]
    return [*head, *(f"{mean:.3f}" for mean in means), seeds, seconds]


def seeds() -> str:
    """Lay out means and standard deviations over seeds of all rows, for each class of each set.

    A row is compared with the default of the same seed, which has the same images. The table shows
    the mean difference over classes, and its standard deviation over seeds. Only seeds that all
    classes have are used.
    """
    wanted = [(data, cls) for data, classes in SETS.items() for cls in classes]
    found = {data: by_row(data) for data in SETS}
    methods = sorted({method for rows in found.values() for method in rows})
    cells = {
        method: [_by_seed(found[data][method][cls]) for data, cls in wanted] for method in methods
    }
    usual = cells.pop("default", [])
    shown = []
    for method, of in [("default", usual), *cells.items()]:
        shared = sorted(set.intersection(*map(set, [*of, *usual]))) if of else []
        if len(shared) > 1:
            spreads = [markdown.spread([cell[seed] for seed in shared]) for cell in of]
            gain = "-" if method == "default" else _gain(of, usual, shared)
            shown.append([method, *spreads, gain, str(len(shared))])
    names = [f"{data}/{cls}" for data, cls in wanted]
    return markdown.table(["row", *names, "to the default", "seeds"], shown)


def _by_seed(results: list[dict[str, Any]]) -> dict[int, float]:
    """Collect the AUROC of the current default score by seed; older results are left out."""
    return {r["seed"]: r["auroc"] for r in results if OF_TODAY in r["auroc_by_term"]}


def _gain(cells: list[dict[int, float]], usual: list[dict[int, float]], shared: list[int]) -> str:
    """Show the mean difference of AUROC to the default, and its deviation over shared seeds."""
    pairs = list(zip(cells, usual, strict=True))
    gains = [np.mean([cell[seed] - of[seed] for cell, of in pairs]) for seed in shared]
    return f"{np.mean(gains):+.3f} ± {np.std(gains, ddof=1):.3f}"


def order(*names: str) -> str:
    """Lay out AUROC of the `paper` score and reconstruction error of each way to learn an encoder.

    All rows have the same GAN. The number after ± is the standard deviation over seeds, where there
    are several.

    Parameters
    ----------
    *names : str
        Set and class of each column, such as ``mnist/8``.
    """
    found = [by_row(f"order/{name.partition('/')[0]}") for name in names]
    classes = [name.partition("/")[2] for name in names]
    shown = []
    for method, choices in _ORDER.items():
        cells = [rows[method].get(cls, []) for rows, cls in zip(found, classes, strict=True)]
        scores = [markdown.spread([r["auroc_by_score"]["paper"] for r in of]) for of in cells]
        missed = [
            markdown.spread([r["health_values"]["reconstruction"] for r in of]) for of in cells
        ]
        shown.append([*choices, *scores, *missed, str(min(map(len, cells)))])
    titles = [f"{what} {name}" for what in ("`paper`", "error") for name in names]
    return markdown.table(["mapping", "encoder", *titles, "seeds"], shown)


def search() -> str:
    """Lay out AUROC and losses of each mapping of queries, then CPU seconds for each image."""
    found = load("lineage/search")
    steps = sorted({n for r in found for m in r["mappings"].values() for n in m.get("steps", ())})
    titles = ["set", "mapping", "AUROC anogan", "AUROC paper"]
    titles += [f"loss (residual) at step {n}" for n in steps]
    rows = [
        [result["cls"], name, *_mapping_cells(mapping, steps)]
        for result in found
        for name, mapping in result["mappings"].items()
    ]
    clock = ["set", *_CLOCK, "one by one / batched", "one by one / encoder"]
    times = markdown.table(clock, [_clock_cells(result) for result in found])
    return markdown.table(titles, rows) + "\n" + times


def _mapping_cells(mapping: dict[str, Any], steps: list[int]) -> list[str]:
    falls = {}
    if "steps" in mapping:
        figures = zip(mapping["loss"], mapping["residual"], strict=True)
        falls = dict(zip(mapping["steps"], figures, strict=True))
    scores = [f"{mapping['auroc'][score]:.3f}" for score in ("anogan", "paper")]
    return scores + ["{:.1f} ({:.1f})".format(*falls[n]) if n in falls else "-" for n in steps]


def _clock_cells(result: dict[str, Any]) -> list[str]:
    clock = result["seconds_an_image"]
    ratios = [
        clock["search_one_by_one"] / clock[name]
        for name in ("search_in_batches", "encoder_in_batches")
    ]
    seconds = [f"{clock[name]:.2g}" for name in _CLOCK.values()]
    return [result["cls"], *seconds, f"{ratios[0]:.1f}", f"{ratios[1]:,.0f}"]
