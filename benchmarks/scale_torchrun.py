"""Train one model with several processes: ``python -m benchmarks.scale torchrun``.

It is trained with 1, 2 and 3 processes, and with further seeds in one process. The AUROC of several
processes must lie within the spread of the seeds. All processes share the processors of this
machine, so the seconds say nothing of what more machines would save.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sklearn.metrics import roc_auc_score

from anoscan.detector import Detector
from benchmarks import data, markdown

ROOT = Path(__file__).parent
RESULTS = ROOT / "results" / "scale" / "torchrun.json"
PICTURE = ROOT.parent / "docs" / "torchrun-losses.png"
SET, CLASS, SHOWN = "mnist", "2", 4000
TRAIN, TEST = 1500, 2000  # images of the set that are used
RUNS = [(1, 0), (2, 0), (3, 0), (1, 1), (1, 2)]  # processes, seed
SHOWN_LOSSES = (("gan", "discriminator"), ("gan", "generator"), ("reconstruction", "error"))


def train(split: data.Split, processes: int, seed: int) -> dict[str, Any]:
    """Train with so many processes, score the test images, and return figures and loss curves."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        data.write_folder(split.train[:TRAIN], folder / "train")
        paths = data.write_folder(split.test[:TEST], folder / "test")
        program = ["-m", "anoscan", "train", str(folder / "train"), "--name", "scale", "--json"]
        options = ["--images-shown", str(SHOWN), "--seed", str(seed), "--quiet"]
        start = [sys.executable]
        if processes > 1:
            start += ["-m", "torch.distributed.run", "--nproc-per-node", str(processes)]
        began = time.monotonic()
        done = subprocess.run(
            [*start, *program, *options],
            env=os.environ | {"ANOSCAN_HOME": str(folder), "OMP_NUM_THREADS": "1"},
            check=True,
            stdout=subprocess.PIPE,
        )
        seconds = time.monotonic() - began
        report = json.loads(done.stdout)
        record = Path(report["tracking"]) / "losses.jsonl"
        losses = [json.loads(line) for line in record.read_text(encoding="utf-8").splitlines()]
        detector = Detector.load(report["model"]["path"])
        found = {image.path: image.score for image in detector.score(folder / "test").images}
        scores = [found[str(path)] for path in paths]
    return {
        "processes": processes,
        "seed": seed,
        "auroc": float(roc_auc_score(split.anomalous[:TEST], scores)),
        "seconds": seconds,
        "losses": losses,
    }


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Return the AUROCs as a Markdown table, with the last loss of each stage of the training."""
    titles = ["processes", "seed", "AUROC", *(" ".join(which) for which in SHOWN_LOSSES)]
    cells = []
    for row in rows:
        last = [f"{curve(row, *which)[1][-1]:.3f}" for which in SHOWN_LOSSES]
        cells.append([str(row["processes"]), str(row["seed"]), f"{row['auroc']:.4f}", *last])
    return markdown.table(titles, cells)


def curve(row: dict[str, Any], stage: str, loss: str) -> tuple[list[int], list[float]]:
    """Return the images shown and the values of one loss of a training."""
    lines = [line for line in row["losses"] if line["stage"] == stage and loss in line["losses"]]
    return [line["images"] for line in lines], [line["losses"][loss] for line in lines]


def draw(rows: Sequence[dict[str, Any]], path: Path) -> None:
    """Draw the loss curves of seed 0 beside each other, before those of other seeds in grey."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 2.8), layout="constrained")
    styles = {1: ("C0", "-"), 2: ("C1", "--"), 3: ("C2", ":")}
    for axes, which in zip(figure.subplots(1, len(SHOWN_LOSSES)), SHOWN_LOSSES, strict=True):
        for row in (row for row in rows if row["seed"]):
            axes.plot(*curve(row, *which), color="0.85", linewidth=1)
        for row in (row for row in rows if not row["seed"]):
            color, style = styles[row["processes"]]
            label = f"{row['processes']} process{'es' * (row['processes'] > 1)}"
            axes.plot(*curve(row, *which), color=color, linestyle=style, label=label)
        axes.set_title(" ".join(which), fontsize=9)
        axes.set_xlabel("images shown", fontsize=8)
        axes.tick_params(labelsize=7)
    axes.legend(fontsize=7)
    figure.savefig(path, dpi=80)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure what is not measured yet, then print the table and draw the curves."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.parse_args(arguments)
    split = data.load(SET, CLASS, seed=0)
    rows = json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.exists() else []
    known = {(row["processes"], row["seed"]) for row in rows}
    RESULTS.parent.mkdir(parents=True, exist_ok=True)
    for processes, seed in RUNS:
        if (processes, seed) not in known:
            rows.append(train(split, processes, seed))
            RESULTS.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    rows.sort(key=lambda row: (row["processes"], row["seed"]))
    sys.stdout.write(table(rows) + "\n")
    draw(rows, PICTURE)
    return 0


if __name__ == "__main__":
    sys.exit(main())
