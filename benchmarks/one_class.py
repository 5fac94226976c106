"""Lay out the results of `benchmarks.run` and `benchmarks.peers`, where one class is normal."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from typing import Any

import numpy as np

from benchmarks import markdown
from benchmarks.cells import load

# Sets, and the classes that the summary shows; an empty tuple stands for all of them.
SETS: dict[str, tuple[str, ...]] = {
    "fashion-mnist": (),
    "mnist": (),
    "cifar-10": (),
    "letters": (),
    "elpv": ("64",),
    "defects": (),
}
BESIDE = {"pca-64": "PCA-64", "knn-pca": "nearest neighbour on PCA", "mean-image": "mean image"}
PEERS = ("ganomaly", "pyod-alad", "pyod-anogan")

Rows = dict[str, list[dict[str, Any]]]  # results by class, with one for each seed


def by_name(results: Iterable[dict[str, Any]]) -> dict[str, Rows]:
    """Group results by method and its changed settings, then by class."""
    found: dict[str, Rows] = defaultdict(lambda: defaultdict(list))
    for result in results:
        changed = [f"{key} {value}" for key, value in result["settings"]]
        found[", ".join([result["method"], *changed])][result["cls"]].append(result)
    return found


def plain(classes: Iterable[str]) -> list[str]:
    """Sort unchanged classes; those like ``0.first50`` are left out and have their own table."""
    return sorted(cls for cls in set(classes) if "." not in cls)


def aurocs(rows: Rows, classes: list[str]) -> list[list[float]]:
    """Collect AUROC by class and seed."""
    return [[result["auroc"] for result in rows.get(cls, [])] for cls in classes]


def mean(rows: Rows, classes: list[str]) -> float:
    """Average AUROC over seeds, then over classes; classes without a result do not count."""
    values = [np.mean(of) for of in aurocs(rows, classes) if of]
    return float(np.mean(values)) if values else 0.0


def means(values: list[list[float]]) -> list[str]:
    """Show a mean for each class, and the mean of these when no class is missing."""
    overall = [float(np.mean(of)) for of in values] if all(values) else []
    return [*map(markdown.mean, values), markdown.mean(overall)]


def row(name: str, rows: Rows, classes: list[str]) -> list[str]:
    """Show AUROC of a method by class, then mean, deviation over seeds, seeds and CPU seconds."""
    rows = {cls: rows[cls] for cls in classes if cls in rows}
    values = aurocs(rows, list(rows))
    spreads = [float(np.std(of, ddof=1)) for of in values if len(of) > 1]
    seconds = np.mean([result["cpu_seconds"] for of in rows.values() for result in of])
    name = f"**{name}**" if name == "anoscan" else name
    figures = [*means(aurocs(rows, classes)), markdown.mean(spreads)]
    return [name, *figures, str(min(map(len, values))), f"{seconds:.0f}"]


def table(data: str) -> str:
    """Lay out a set: mean AUROC over seeds for each class, then over classes."""
    found = {name: rows for name, rows in by_name(load(f"{data}/*")).items() if plain(rows)}
    classes = plain(cls for rows in found.values() for cls in rows)
    ordered = sorted(found.items(), key=lambda item: -mean(item[1], classes))
    titles = [data, *classes, "mean", "sd over seeds", "seeds", "CPU s"]
    return markdown.table(titles, [row(name, rows, classes) for name, rows in ordered])


def summary() -> str:
    """Lay out all sets: mean AUROC of anoscan, three baselines and the best peer."""
    titles = ["set", "classes", "anoscan", *BESIDE.values(), "best other GAN"]
    return markdown.table(titles, [_summary_row(*item) for item in SETS.items()])


def _summary_row(data: str, chosen: tuple[str, ...]) -> list[str]:
    found = by_name(load(f"{data}/*"))
    classes = list(chosen) or plain(found["anoscan"])
    figures = {name: means(aurocs(found[name], classes))[-1] for name in ("anoscan", *BESIDE)}
    figures["anoscan"] = f"**{figures['anoscan']}**"
    peers = {name: means(aurocs(found[name], classes))[-1] for name in PEERS if name in found}
    best = max(peers, key=lambda name: peers[name], default="")
    shown = f"{classes[0]} to {classes[-1]}" if len(classes) > 4 else ", ".join(classes)
    return [data, shown, *figures.values(), f"{peers[best]} ({best})" if best else "-"]


def terms(data: str) -> str:
    """Lay out the AUROC of each term of the default detector alone, by class."""
    rows = by_name(load(f"{data}/anoscan")).get("anoscan", {})
    classes = plain(rows)
    names = sorted({name for c in classes for r in rows[c] for name in r["auroc_by_term"]})
    shown = [["**score**", *means(aurocs(rows, classes))]]
    for name in names:
        having = [
            [r["auroc_by_term"] for r in rows[c] if name in r["auroc_by_term"]] for c in classes
        ]
        shown.append([name, *means([[of[name] for of in each] for each in having])])
    return markdown.table([data, *classes, "mean"], shown)


def ablation(*names: str) -> str:
    """Lay out how AUROC changes when the score has one term less, or one term more.

    Each figure is the mean difference to the default score, ± its standard deviation over classes.
    The difference of a class is the mean over its seeds.
    """
    found = {name: by_name(load(f"{name}/anoscan")).get("anoscan", {}) for name in names}
    sets = {name: [rows[cls] for cls in plain(rows)] for name, rows in found.items() if rows}
    everything = [result for classes in sets.values() for rows in classes for result in rows]
    variants = sorted({name for result in everything for name in result["auroc_of_ablation"]})
    usual = [
        means([[r["auroc"] for r in rows] for rows in classes])[-1] for classes in sets.values()
    ]
    shown = [["**as it is**", *usual]]
    for variant in variants:
        shown.append([variant, *(_gain(classes, variant) for classes in sets.values())])
    return markdown.table(["score", *sets], shown)


def _gain(classes: list[list[dict[str, Any]]], variant: str) -> str:
    """Show the mean difference of AUROC of a variant to the score, and its deviation.

    Both are over classes, of means over seeds.
    """
    gains = [
        np.mean([r["auroc_of_ablation"][variant] - r["auroc"] for r in having])
        for rows in classes
        if (having := [r for r in rows if variant in r["auroc_of_ablation"]])
    ]
    return f"{np.mean(gains):+.3f} ± {np.std(gains):.3f}" if gains else "-"


def curve(data: str) -> str:
    """Lay out AUROC on changed classes: few training images, anomalies among them, and others."""
    found = by_name(load(f"{data}/*"))
    changed = sorted({cls for rows in found.values() for cls in rows if "." in cls}, key=_change)
    shown = [
        [name, *map(markdown.mean, values)]
        for name, rows in sorted(found.items())
        if any(values := aurocs(rows, changed))
    ]
    return markdown.table([data, *changed], shown)


def _change(cls: str) -> tuple[str, str, int]:
    """Split ``0.first50`` into ('0', 'first', 50), so that classes are sorted by the number."""
    name, _, change = cls.partition(".")
    return name, change[:5], int(change[5:])
