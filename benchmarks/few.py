"""Do verdicts help where normal images are few? Run ``python -m benchmarks.few --help``.

Models are trained on 100 to 1,300 images with default settings, the images of ``anoscan demo``
among them. The false-alarm rate is the one that is chosen automatically. Among test images, which
no network saw, anomalies found and false alarms are counted. Results are kept and continued like
those of `benchmarks.run`.
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.stats import betabinom, binom
from sklearn.metrics import roc_auc_score

from anoscan.cli.commands import demo
from anoscan.scoring.choices import DEFAULT_SCORE, ScoreRequest
from benchmarks import cells, data, markdown
from benchmarks.cells import Cell, keep
from benchmarks.run import train

METHOD = "auto"
SETS = {
    "demo": ("digits",),
    "mnist": ("2.first300",),
    "fashion-mnist": ("3.first200", "6.first100"),
    "letters": ("C.first200",),
    "elpv": ("64.first500",),
}


def measure(split: data.Split, seed: int) -> dict[str, Any]:
    """Train with default settings on a split, and count the verdicts on its test images."""
    done = train(split, seed, {})
    threshold = done.judge.threshold(ScoreRequest())
    scores, odd = done.judge.scorer.scores(done.terms, DEFAULT_SCORE), split.anomalous
    called = scores > threshold.score
    return {
        "auroc": float(roc_auc_score(odd, scores)),
        "cpu_seconds": done.seconds,
        "recall": float(called[odd].mean()),
        **_kept(threshold.calibration_images, threshold.false_alarm_rate, called[~odd]),
        **cells.sizes(split),
    }


def run_demo() -> dict[str, Any]:
    """Run ``anoscan demo``, whose images and seed are always the same."""
    with tempfile.TemporaryDirectory() as name:
        start = time.process_time()
        report = demo.run(
            Path(name) / "demo",
            device="cpu",
            precision="auto",
            workers=1,
            on_progress=lambda now: None,
        )
        seconds = time.process_time() - start
    threshold, counts = report.eval.threshold, report.eval.at_threshold.confusion
    normal, trained = report.eval.images.normal, report.train.images
    called = np.arange(normal) < counts.false_positive
    images = {"train": trained.trained + trained.held_out, "test_normal": normal}
    return {
        "auroc": report.eval.auroc,
        "cpu_seconds": seconds,
        "recall": report.eval.at_threshold.recall,
        **_kept(threshold.calibration_images, threshold.false_alarm_rate, called),
        "images": images | {"test_anomalous": report.eval.images.anomalous},
    }


def _kept(held_out: int, rate: float, called: np.ndarray) -> dict[str, Any]:
    """Say whether a false-alarm rate was kept on m normal images, of which some were `called` (m,).

    `interval95` is what chance allows where the true rate is exactly `rate`. The threshold is the
    j-th highest of n held-out scores, though, so its true rate is itself a draw: with this, false
    alarms are beta-binomial(m, j, n + 1 - j), and inside `interval95_of_draws`.
    """
    m, ends = len(called), (0.025, 0.975)
    j = max(1, int(rate * (held_out + 1) + 1e-9))
    return {
        "held_out": held_out,
        "rate": rate,
        "alarms": int(called.sum()),
        "interval95": [int(x) for x in binom.ppf(ends, m, rate)],
        "interval95_of_draws": [int(x) for x in betabinom.ppf(ends, m, j, held_out + 1 - j)],
    }


def compute(cell: Cell, command: str) -> dict[str, Any]:
    """Measure a cell, and keep the result with the commit and command that made it."""
    torch.set_num_threads(1)
    name = cell.data.removeprefix("few/")
    if name == "demo":
        return keep(cell, run_demo(), command)
    return keep(cell, measure(data.load(name, cell.cls, seed=cell.seed), cell.seed), command)


def table() -> str:
    """Lay out the kept results, one row each."""
    titles = ["set, class, seed", "normal images, held out", "rate chosen", "anomalies found"]
    titles += ["false alarms, of normal images", "95 %, rate exact", "95 %, rate drawn", "AUROC"]
    return markdown.table(titles, [_row(result) for result in cells.load("few/*")])


def _row(result: dict[str, Any]) -> list[str]:
    images = result["images"]
    return [
        f"{result['data'].removeprefix('few/')} {result['cls']}, {result['seed']}",
        f"{images['train']:,}, {result['held_out']:,}",
        f"{result['rate']:.0%}",
        f"{result['recall']:.0%}",
        f"{result['alarms']:,} of {images['test_normal']:,}",
        *("{} to {}".format(*result[name]) for name in ("interval95", "interval95_of_draws")),
        f"{result['auroc']:.3f}",
    ]


def main() -> None:
    """Compute missing cells, with a line each on stderr; print JSON of all cells."""
    parser = cells.parser(__doc__)
    parser.add_argument("--data", type=cells.listed, help="all by default")
    parser.add_argument("--seeds", type=int, default=1, help="how many, from 0; the demo has one")
    options = parser.parse_args()
    wanted = [
        Cell(f"few/{name}", cls, seed, METHOD)
        for name in options.data or SETS
        for cls in SETS[name]
        for seed in range(1 if name == "demo" else options.seeds)
        if options.classes is None or cls in options.classes
    ]
    cells.sweep(wanted, compute, options)


if __name__ == "__main__":
    main()
