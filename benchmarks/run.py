"""Measure detectors on real images, cell by cell: ``python -m benchmarks.run --help``.

A cell is one set, class, seed and method. Its result is kept as a line of JSON, and a later run
does not compute it again. So a sweep can be stopped, continued and spread over processes. Every
number comes from the last weights. Settings were chosen on the classes of ``--development``.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from sklearn.metrics import roc_auc_score

from anoscan.core.config import IMAGES_SHOWN, LITE
from anoscan.core.results import Skipped
from anoscan.detector import Detector
from anoscan.images.files import find
from anoscan.model.judge import TERMS_ALONE, Judge
from anoscan.model.model import Model
from anoscan.scoring.calibration import TermScale
from anoscan.scoring.choices import SCORES, ScoreRequest
from benchmarks import baselines, cells, data
from benchmarks.cells import Cell, keep

FALSE_ALARM_RATE = 0.01  # of the recall and the false alarms that are kept

# The GAN and encoder stages are as long as the default's, so that the cost is the same.
PAPER = {
    "objective": "wgan-gp",
    "architecture": "dcgan",
    "images_shown": IMAGES_SHOWN,
    "rotation_images_shown": 0,
    "encoder_images_shown": IMAGES_SHOWN // 3,
    "reconstruction_images_shown": 0,
}

_UNTRAINED = {
    "images_shown": 1,
    "encoder_images_shown": 1,
    "reconstruction_images_shown": 0,
    "batch_size": 2,
}


def anoscan(
    split: data.Split,
    seed: int,
    settings: dict[str, Any],
    look: Callable[[Detector], None] = lambda detector: None,
) -> dict[str, Any]:
    """Train a detector as `train` does, and collect all its figures.

    Returns
    -------
    dict
        AUROC of the score, its terms, published scores, the model's baselines and the ablation.
        The dict also has false-alarm rate and recall at `FALSE_ALARM_RATE`, CPU seconds, results of
        health checks and self-test, weights of the terms (``trust``), and the configuration.
    """
    done = train(split, seed, settings, look)
    judge, terms, own = done.judge, done.terms, done.own
    assert done.detector.report is not None
    assert done.detector.report.self_test is not None
    model, odd = done.detector.model, split.anomalous
    scores = {name: judge.scorer.scores(terms, name) for name in filter(judge.scorer.terms, SCORES)}
    level = judge.threshold(ScoreRequest(false_alarm_rate=FALSE_ALARM_RATE)).score
    called = scores["calibrated"] > level
    return {
        "auroc": _auroc(odd, scores["calibrated"]),
        "auroc_by_term": {
            name: _auroc(odd, column) for name, column in zip(model.fitted, terms.T, strict=True)
        },
        "auroc_by_score": {
            name: _auroc(odd, values) for name, values in scores.items() if name != "calibrated"
        },
        "auroc_of_own_baselines": {name: _auroc(odd, values) for name, values in own.items()},
        "auroc_of_ablation": ablation(model, terms, odd),
        "false_alarm_rate": float(called[~odd].mean()),
        "recall": float(called[odd].mean()),
        "cpu_seconds": done.seconds,
        "cpu_seconds_scoring": done.seconds_scoring,
        "health": done.detector.report.health.verdict,
        "health_values": {check.name: check.value for check in done.detector.report.health.checks},
        "self_test": done.detector.report.self_test.auroc,
        "self_test_pixel": done.detector.report.self_test.pixel_auroc,
        "self_test_whole": done.detector.report.self_test.whole_auroc,
        "trust": dict(zip(model.fitted, model.calibration.weights.tolist(), strict=True)),
        "config": model.metadata["config"],
        "precision": model.metadata["precision"],
    }


@dataclass(frozen=True)
class Trained:
    """Holds a detector, and what it measured of a test set.

    Parameters
    ----------
    detector : Detector
        The trained detector.
    judge : Judge
        Judge with the detector's model.
    terms : ndarray of shape (n, k)
        Raw terms of the test images.
    own : dict
        Scores (n,) of the test images by each baseline that the model contains.
    seconds, seconds_scoring : float
        CPU seconds of the training, and of measuring the test images.
    """

    detector: Detector
    judge: Judge
    terms: npt.NDArray[np.float64]
    own: dict[str, npt.NDArray[np.float64]]
    seconds: float
    seconds_scoring: float


def train(
    split: data.Split,
    seed: int,
    settings: dict[str, Any],
    look: Callable[[Detector], None] = lambda detector: None,
) -> Trained:
    """Train with `Detector.train` on a folder of PNGs, and measure the test images of a split.

    Parameters
    ----------
    split : Split
        Images to train on and to measure.
    seed : int
        Seed of the training.
    settings : dict
        Settings of the training.
    look : callable
        Function that is called with the detector after the training.
    """
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        data.write_folder(split.train, folder / "train")
        data.write_folder(split.test, folder / "test")
        start = time.process_time()
        detector = Detector.train(
            folder / "train", path=folder / "model.safetensors", seed=seed, workers=1, **settings
        )
        trained = time.process_time()
        look(detector)
        judge = Judge(detector.model, detector.runtime)
        terms, own = raw_terms(judge, folder / "test")
        scored = time.process_time()
    return Trained(detector, judge, terms, own, trained - start, scored - trained)


def raw_terms(
    judge: Judge, folder: Path
) -> tuple[npt.NDArray[np.float64], dict[str, npt.NDArray[np.float64]]]:
    """Measure the images of a folder, sorted by name.

    Returns
    -------
    terms, own
        Raw terms (n, k), and the scores (n,) of each baseline that the model contains.

    Raises
    ------
    RuntimeError
        When an image cannot be read.
    """
    files = sorted(find([folder]), key=lambda image: image.path)
    rows, pixels = [], []
    for batch in judge.measured(files, 64, wanted=TERMS_ALONE):
        for outcome, terms, *_ in batch:
            if isinstance(outcome, Skipped):
                raise RuntimeError(f"{outcome.path}: {outcome.reason}")
            rows.append(terms)
            pixels.append(outcome.pixels)
    return np.stack(rows), judge.model.baselines.scores(np.stack(pixels))


def ablation(
    model: Model, terms: npt.NDArray[np.float64], odd: npt.NDArray[np.bool_]
) -> dict[str, float]:
    """Measure AUROC of variants of the default score.

    Variants have all weights equal, or one term less, or one term more.

    Parameters
    ----------
    model : Model
        Trained model.
    terms : ndarray of shape (n, k)
        Raw terms of the test images.
    odd : ndarray of bool (n,)
        Labels of the test images.
    """
    names, calibration = list(model.fitted), model.calibration
    given = SCORES["calibrated"].weights
    weights = {name: given.get(name, 0) for name in names}
    trusted = dict(zip(names, calibration.weights.tolist(), strict=True))
    variants = {"all alike": dict(weights)}
    for name, weight in weights.items():
        if name in ("paper", "anogan"):
            continue
        changed = weights | {name: 0 if weight else 1}
        variants[f"{'without' if weight else 'with'} {name}"] = {
            key: value * trusted[key] for key, value in changed.items()
        }
    found = {}
    for variant, chosen in variants.items():
        if not any(chosen.values()):
            continue
        scale = TermScale.fit(calibration.terms, np.array([chosen[name] for name in names]))
        found[variant] = _auroc(odd, scale.combine(terms))
    return found


def _auroc(odd: npt.NDArray[np.bool_], scores: npt.NDArray[np.float64]) -> float:
    return float(roc_auc_score(odd, scores))


def untrained(split: data.Split, seed: int, settings: dict[str, Any]) -> dict[str, Any]:
    """Measure the detector with random weights, to see what training adds."""
    return anoscan(split, seed, _UNTRAINED | settings)


def paper(split: data.Split, seed: int, settings: dict[str, Any]) -> dict[str, Any]:
    """Measure f-AnoGAN's recipe and score: WGAN-GP, no rotation stage, but `dcgan` networks."""
    found = anoscan(split, seed, PAPER | settings)
    return found | {"auroc": found["auroc_by_score"]["paper"], "auroc_default": found["auroc"]}


def backbone(split: data.Split, seed: int, settings: dict[str, Any]) -> dict[str, Any]:
    """Measure the default with features of a pretrained network beside its own."""
    return anoscan(split, seed, {"backbone": LITE} | settings)


def features_alone(split: data.Split, seed: int, settings: dict[str, Any]) -> dict[str, Any]:
    """Measure the features of a pretrained network without a GAN."""
    return backbone(split, seed, {"images_shown": 0} | settings)


def _baseline(name: str) -> Callable[[data.Split, int, dict[str, Any]], dict[str, Any]]:
    def measure(split: data.Split, seed: int, settings: dict[str, Any]) -> dict[str, Any]:
        found: dict[str, Any] = baselines.evaluate(split, seed, [name])[name]
        return dict(found)

    return measure


METHODS: dict[str, Callable[[data.Split, int, dict[str, Any]], dict[str, Any]]] = {
    "anoscan": anoscan,
    "untrained": untrained,
    "paper": paper,
    "backbone": backbone,
    "features-alone": features_alone,
} | {name: _baseline(name) for name in baselines.BASELINES}


def compute(cell: Cell, command: str) -> dict[str, Any]:
    """Measure a cell, and keep the result with the commit and command that made it."""
    import torch

    torch.set_num_threads(1)
    split = data.load(cell.data, cell.cls, seed=cell.seed)
    found = METHODS[cell.method](split, cell.seed, dict(cell.settings))
    versions = {"torch": str(torch.__version__), "anoscan_scores": list(SCORES)}
    return keep(cell, found | versions | cells.sizes(split), command)


def wanted(options: argparse.Namespace) -> Iterator[Cell]:
    """Yield the cells of a sweep, ordered by seed: one that is cut short has complete seeds."""
    settings = tuple(sorted((key, json.loads(value)) for key, value in options.set))
    for seed in range(options.first_seed, options.first_seed + options.seeds):
        for name in options.data:
            classes = options.classes or data.classes(name)
            if options.development:
                classes = data.development(name)
            for cls in classes:
                for method in options.methods:
                    own = settings if method not in baselines.BASELINES else ()
                    yield Cell(name, cls, seed, method, own)


def arguments() -> argparse.Namespace:
    """Read the command line of a sweep."""
    parser = cells.parser(__doc__)
    parser.add_argument("--data", type=cells.listed, required=True, help=", ".join(data.SETS))
    parser.add_argument("--development", action="store_true", help="classes kept for tuning")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--methods", type=cells.listed, default=["anoscan", "pca-64"])
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        type=lambda text: tuple(text.split("=", 1)),
        metavar="SETTING=JSON",
        help="a training setting, e.g. images_shown=20000",
    )
    options = parser.parse_args()
    if unknown := set(options.methods) - set(METHODS):
        parser.error(f"unknown method {', '.join(unknown)}; there are {', '.join(METHODS)}")
    return options


def main() -> None:
    """Compute missing cells, with a line each on stderr; print JSON of all cells."""
    options = arguments()
    cells.sweep(list(wanted(options)), compute, options)


if __name__ == "__main__":
    main()
