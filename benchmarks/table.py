"""Write tables of kept results to ``benchmarks/tables``: ``python -m benchmarks.table``.

With ``--check`` it writes nothing, and exits with 1 when a table would change.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from benchmarks import (
    calibration,
    ceiling,
    decoding,
    family,
    few,
    lengths,
    lineage,
    markdown,
    memory,
    one_class,
    planted,
    selftest,
    textures,
    twin,
)
from benchmarks.one_class import SETS

TABLES = Path(__file__).parent / "tables"


class Page(NamedTuple):
    """Describes a file of tables."""

    title: str
    shows: str  # what the tables show; `text` completes the sentence with the command
    job: str  # module, and arguments, of the benchmark that makes the results
    body: Callable[[], str]


def _of_sets(table: Callable[[str], str], *names: str) -> Callable[[], str]:
    return lambda: "\n".join(table(name) for name in names)


def _lineage() -> str:
    found = {f"Rows on {data}": family.lineage(data) for data in lineage.SETS}
    found["Rows over seeds"] = family.seeds()
    found["How the encoder is learned"] = family.order("mnist/8", "fashion-mnist/0", "cifar-10/0")
    found["Growing on photographs"] = family.lineage("elpv")
    return markdown.headed(found)


def _selftest() -> str:
    found = {"A short and a long training": selftest.table()}
    return markdown.headed(found | {"Every two kept models": selftest.table_of_kept()})


PAGES = {
    "summary": Page(
        "How well: all sets",
        "Mean AUROC over the classes of each set, one of them normal and all others anomalies",
        "run",
        one_class.summary,
    ),
    "one-class": Page(
        "How well: class by class",
        "AUROC of every method for each class that is the normal one, higher is better",
        "run",
        _of_sets(one_class.table, *SETS),
    ),
    "terms": Page(
        "What each term is worth",
        "AUROC of each term of the default detector alone, by class",
        "run",
        _of_sets(one_class.terms, *SETS),
    ),
    "ablation": Page(
        "What each part of the score adds",
        "Mean difference to the AUROC of the score as it is, ± standard deviation over classes,"
        " without one of its terms or with one more",
        "run",
        lambda: one_class.ablation(*SETS),
    ),
    "curves": Page(
        "Several kinds of normal images, few images, contaminated folders",
        "AUROC on changed classes: `2.other6000` takes 6,000 images of all other classes as normal,"
        " `0.first50` trains on 50 images, `0.mixed5` on a folder with 5 % of other classes",
        "run",
        _of_sets(one_class.curve, "mnist", "cifar-10", "fashion-mnist"),
    ),
    "lineage": Page(
        "The lineage, choice by choice",
        "AUROC of the default and of detectors with one choice changed, by class, then means of"
        " published scores, terms and checks (starred: before the last term counted)",
        "lineage",
        _lineage,
    ),
    "search": Page(
        "Search against encoder",
        "AUROC of the published scores by each way to find z, how the search falls, and its cost",
        "lineage search",
        family.search,
    ),
    "twin": Page(
        "How good are reconstructions?",
        "Squared error over the mean image's (error), squared error inside planted defects over"
        " what these changed (left), pixel AUROC and AUPRO of the residual, power in the upper half"
        " of the spectrum over that of the images (sharpness), and AUROC of the residual on real"
        " anomalies, beside PCA",
        "twin",
        twin.table,
    ),
    "memory": Page(
        "Memory by size",
        "Millions of parameters of each network, and peak memory of a training of RGB images",
        "memory",
        memory.table,
    ),
    "decoding": Page(
        "How fast are images decoded?",
        "Images a second in threads of one process, and in processes of their own",
        "decoding",
        decoding.table,
    ),
    "calibration": Page(
        "Do verdicts keep their promises?",
        "False alarms against what was promised, false discoveries, and anomalies found",
        "calibration",
        calibration.tables,
    ),
    "few": Page(
        "Do verdicts help where normal images are few?",
        "Anomalies called anomalous, and false alarms against what chance allows, at the"
        " false-alarm rate that is chosen automatically",
        "few",
        few.table,
    ),
    "lengths": Page(
        "How AUROC grows with training time",
        "AUROC (± its deviation over seeds) and CPU seconds of trainings of several lengths: the"
        " default, f-AnoGAN's recipe in float32, and an older version by its commit",
        "lengths",
        lengths.table,
    ),
    "planted": Page(
        "Defects planted in whole solar cells",
        "AUROC of images and pixels, and AUPRO",
        "planted",
        planted.tables,
    ),
    "textures": Page(
        "Maps of models of patches",
        "AUROC of pixels and AUPRO on foreign textures and on small defects",
        "textures",
        textures.table,
    ),
    "selftest": Page(
        "Does the self-test rank models as labels do?",
        "AUROC by labels and by the self-test for two trainings a class, and where both agree",
        "selftest",
        _selftest,
    ),
    "ceiling": Page(
        "How well can small defects be detected at all?",
        "AUROC of a classifier that was shown thousands of the very defects",
        "ceiling",
        ceiling.table,
    ),
}


def text(page: Page) -> str:
    """Compose the Markdown text of a page: its heading, one sentence, and its tables."""
    made = f"results of `python -m benchmarks.{page.job}`, written by `python -m benchmarks.table`"
    return f"# {page.title}\n\n{page.shows}; {made}.\n\n{page.body()}"


def main() -> None:
    """Write all tables; with ``--check`` only name those that would change."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 if out of date")
    check = parser.parse_args().check
    stale = []
    for name, page in PAGES.items():
        path, fresh = TABLES / f"{name}.md", text(page)
        if not path.exists() or path.read_text(encoding="utf-8") != fresh:
            stale.append(path.name)
        if not check:
            path.parent.mkdir(exist_ok=True)
            path.write_text(fresh, encoding="utf-8")
    if check and stale:
        sys.exit(f"not up to date: {', '.join(stale)}")


if __name__ == "__main__":
    main()
