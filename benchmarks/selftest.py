"""Does the self-test rank models as labels do? Run ``python -m benchmarks.selftest --help``.

Each class is trained twice: with 100 images shown, and with 4,000. The self-test knows no labels. A
class agrees when the self-test prefers the training that real labels prefer. Both trainings get the
same synthetic anomalies.

The number taken from the self-test is its AUROC on normal images that are bent as a whole. How well
a model finds small defects says little about images that are anomalous as a whole. This choice was
made on the development classes (Fashion-MNIST 0, 3, 6, MNIST 2, 5, CIFAR-10 1), which are not
measured here. Results are kept and continued like those of `benchmarks.run`.

``--kept`` trains nothing. It compares every two models of one class and seed that `benchmarks.run`
and `benchmarks.lineage` have measured. Pairs whose AUROCs by labels differ by less than 0.01 are
left out.
"""

from __future__ import annotations

import dataclasses
import itertools
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.metrics import roc_auc_score

from anoscan.dataset.material import Material
from anoscan.detector import Detector
from anoscan.images.files import find
from anoscan.training.self_test import run_self_test
from benchmarks import cells, data, markdown
from benchmarks.cells import Cell, keep

CLASSES = {"fashion-mnist": "4589", "mnist": "3478", "cifar-10": "57"}
LENGTHS = {"short": 100, "long": 4000}  # images shown
TRAIN, TEST = 2000, 300  # training images of a class; test images, both normal and anomalous
DEFECTS = 24  # synthetic defects of each kind and size
APART = 0.01  # least difference of AUROC by labels at which two models are compared


def smaller(split: data.Split) -> data.Split:
    """Choose `TRAIN` training images and `TEST` test images of each label at random.

    The choice is the same for every model. Masks are dropped.
    """
    rng = np.random.default_rng(0)
    chosen = [
        rng.choice(rows, min(TEST, len(rows)), replace=False)
        for rows in (np.flatnonzero(~split.anomalous), np.flatnonzero(split.anomalous))
    ]
    test = np.concatenate(chosen)
    return dataclasses.replace(
        split,
        train=split.train[rng.permutation(len(split.train))[:TRAIN]],
        test=split.test[test],
        anomalous=split.anomalous[test],
        masks=None,
    )


def compute(cell: Cell, command: str) -> dict[str, Any]:
    """Train and score one model, and keep its AUROC by labels and the results of its self-test."""
    torch.set_num_threads(1)
    split = smaller(data.load(cell.data.removeprefix("selftest-"), cell.cls, seed=cell.seed))
    start = time.process_time()
    with tempfile.TemporaryDirectory() as name:
        train, test = Path(name) / "train", Path(name) / "test"
        data.write_folder(split.train, train)
        data.write_folder(split.test, test)
        detector = Detector.train(
            train,
            path=Path(name) / "model.safetensors",
            seed=cell.seed,
            workers=1,
            **dict(cell.settings),
        )
        material = Material.load(
            find([train]),
            detector.model.rule,
            detector.model.config,
            workers=1,
            on_progress=lambda done, total: None,
        )
        scored = sorted(detector.score(test).images, key=lambda image: image.path)
    tested = run_self_test(detector.model, material, wanted=DEFECTS)
    assert detector.report is not None
    seconds = detector.report.seconds
    found = {
        "auroc": float(roc_auc_score(split.anomalous, [image.score for image in scored])),
        "cpu_seconds": time.process_time() - start,
        "self_test": tested.auroc,
        "self_test_pixel": tested.pixel_auroc,
        "self_test_whole": tested.whole_auroc,
        "self_test_share": seconds["self_test"] / seconds["total"],
    }
    return keep(cell, found | cells.sizes(split), command)


def overall(result: dict[str, Any]) -> float:
    """Take the AUROC by which the self-test ranks models: that of normals bent as a whole."""
    return float(result["self_test_whole"]["anoscan"])


def table() -> str:
    """Lay out the kept results, one row for each class."""
    by_class: dict[tuple[str, str], dict[str, dict[str, Any]]] = {}
    for result in cells.load("selftest-*/*"):
        key = (result["data"].removeprefix("selftest-"), result["cls"])
        by_class.setdefault(key, {})[result["method"]] = result
    rows = []
    for (name, cls), pair in by_class.items():
        labels = [pair[length]["auroc"] for length in LENGTHS]
        tested = [overall(pair[length]) for length in LENGTHS]
        agree = (labels[1] > labels[0]) == (tested[1] > tested[0])
        figures = [f"{value:.4f}" for value in labels + tested]
        rows.append([name, cls, *figures, "yes" if agree else "**no**"])
    titles = ["set", "class", "labels: short", "long", "self-test: short", "long", "agree"]
    return markdown.table(titles, rows)


def kept() -> dict[tuple[str, str, int], list[dict[str, Any]]]:
    """Collect kept cells with a self-test, by set, class and seed; each model counts once."""
    found: dict[tuple[str, str, int], dict[float, dict[str, Any]]] = {}
    for result in cells.load("**/*"):
        # The paper's recipe is left out: its AUROC is that of a score that the self-test does not
        # measure.
        ours = not result["data"].startswith("selftest-") and result["method"] != "paper"
        if "self_test_whole" in result and ours:
            key = (Path(result["data"]).name, result["cls"], result["seed"])
            found.setdefault(key, {})[result["auroc"]] = result
    return {key: list(models.values()) for key, models in found.items()}


def comparisons(models: list[dict[str, Any]]) -> list[tuple[str, str, bool]]:
    """Compare every two models whose AUROC by labels differs by at least `APART`.

    Returns
    -------
    list of (str, str, bool)
        Names of the better and the worse model by labels, and whether the self-test agrees.
    """
    found = []
    ordered = sorted(models, key=lambda model: -float(model["auroc"]))
    for better, worse in itertools.combinations(ordered, 2):
        if better["auroc"] - worse["auroc"] >= APART:
            names = _name(better), _name(worse)
            found.append((*names, overall(better) > overall(worse)))
    return found


def _name(result: dict[str, Any]) -> str:
    return "default" if result["method"] == "anoscan" else str(result["method"])


def table_of_kept() -> str:
    """Lay out how often the self-test agrees with labels, by set and kind of pair."""
    counts: dict[tuple[str, str], list[bool]] = {}
    for (data_name, *_), models in kept().items():
        for better, worse, agrees in comparisons(models):
            pair = _pair({better, worse})
            for key in ((data_name, pair), ("**all**", pair)):
                counts.setdefault(key, []).append(agrees)
    rows = [[*key, str(len(agreed)), str(sum(agreed))] for key, agreed in sorted(counts.items())]
    return markdown.table(["set", "models", "pairs", "agree"], rows)


def _pair(names: set[str]) -> str:
    if "untrained" not in names:
        return "two trained ones"
    return f"{'the default' if 'default' in names else 'another trained one'} and a random one"


def main() -> None:
    """Compute missing cells, with a line each on stderr; print JSON of all cells and the table.

    The table goes to stderr too. With ``--kept`` only the table of kept models is printed.
    """
    parser = cells.parser(__doc__)
    parser.add_argument("--kept", action="store_true", help="compare models measured before")
    options = parser.parse_args()
    if options.kept:
        sys.stdout.write(table_of_kept())
        return
    wanted = [
        Cell(f"selftest-{name}", cls, 0, method, (("images_shown", shown),))
        for name, classes in CLASSES.items()
        for cls in options.classes or classes
        for method, shown in LENGTHS.items()
    ]
    cells.sweep(wanted, compute, options)
    sys.stderr.write(table())


if __name__ == "__main__":
    main()
