"""Are the promised false-alarm rates kept? Run ``python -m benchmarks.calibration WHAT --help``.

``splits`` trains one model for each class. It then divides normal images that no network saw into
calibration images and queries, many times at random. The model stays the same, so only the
calibration differs. A second training would only shift all scores.

``folds`` trains on few images, calibrates on all of them, and counts false alarms among unseen
normal images. ``suspects`` mixes images of other classes into the normal images, and measures how
many of them `suspects` finds. Results are kept and continued like those of `benchmarks.run`.
"""

from __future__ import annotations

import dataclasses
import math
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.stats import betabinom, ks_2samp, kstest
from sklearn.metrics import roc_auc_score

from anoscan.core.runtime import Runtime
from anoscan.detector import Detector
from anoscan.model.judge import Judge
from anoscan.model.model import Model
from anoscan.scoring.calibration import p_values, q_values
from anoscan.scoring.choices import DEFAULT_SCORE, ScoreRequest
from anoscan.training import suspects as job
from benchmarks import cells, data, markdown
from benchmarks.cells import Cell, keep
from benchmarks.run import raw_terms, train

SPLITS = 20
PERMUTATIONS = 2000
RATES = (0.01, 0.05, 0.1)
FDR = 0.1
ODD = 0.1  # share of anomalies among the queries on which false discoveries are measured
SETS = {"fashion-mnist": ("0", "3"), "mnist": ("2",), "elpv": ("64-dev",)}
FEW = {"fashion-mnist": ("0.first200", "3.first200"), "mnist": ("2.first200",)}
FOLDS = 5
SUSPECTS = {"fashion-mnist": ("0.mixed5", "3.mixed5")}

Terms = npt.NDArray[np.float64]


def resplit(
    model: Model,
    runtime: Runtime,
    normal: Terms,
    odd: Terms,
    *,
    strangers: int,
    splits: int,
    seed: int,
) -> dict[str, Any]:
    """Divide normal images at random into calibration images and queries; count false alarms.

    Calibration images and normal queries are exchangeable. So the number of m normal queries above
    the j-th highest of n calibration scores is beta-binomial(m, j, n + 1 - j). This is wider than a
    binomial, because the threshold comes from only n images.

    Parameters
    ----------
    model : Model
        Model whose calibration is replaced by a part of `normal`.
    runtime : Runtime
        Device and threads of the judge.
    normal, odd : ndarray of shape (n, k)
        Raw terms of normal and of anomalous images that no network saw.
    strangers : int
        Number of anomalies among the queries of each split.
    splits : int
        Number of random divisions.
    seed : int
        Seed of the divisions and of the draws of anomalies.

    Returns
    -------
    dict
        For each rate, the number of false alarms in each split and their exact 95 % interval.
        Also the p-values of two-sample Kolmogorov-Smirnov tests of the scores of calibration images
        and normal queries, and the shares of false discoveries.
    """
    rng = np.random.default_rng(seed)
    n = len(normal) // 2
    m = len(normal) - n
    rates = {rate: max(1, math.floor(rate * (n + 1) + 1e-9)) for rate in RATES}
    alarms: dict[float, list[int]] = {rate: [] for rate in RATES}
    uniform, false_share, power = [], [], []
    for _ in range(splits):
        order = rng.permutation(len(normal))
        calibration = dataclasses.replace(model.calibration, terms=normal[order[:n]])
        judge = Judge(dataclasses.replace(model, calibration=calibration), runtime)
        reference = judge.scorer.calibration_scores(DEFAULT_SCORE)
        scores = judge.scorer.scores(normal[order[n:]], DEFAULT_SCORE)
        for rate in RATES:
            level = judge.threshold(ScoreRequest(false_alarm_rate=rate)).score
            alarms[rate].append(int((scores > level).sum()))
        uniform.append(float(ks_2samp(reference, scores).pvalue))
        drawn = odd[rng.permutation(len(odd))[:strangers]]
        both = np.concatenate([scores, judge.scorer.scores(drawn, DEFAULT_SCORE)])
        found = q_values(p_values(both, reference)) <= FDR
        false_share.append(float(found[:m].sum() / max(found.sum(), 1)))
        power.append(float(found[m:].mean()))
    return {
        "calibration_images": n,
        "normal_queries": m,
        "rates": {str(rate): _alarms(alarms[rate], n, m, rates[rate]) for rate in RATES},
        "uniform": _uniform(uniform, n, m, rng),
        "fdr": {
            "level": FDR,
            "false_share": false_share,
            "mean": float(np.mean(false_share)),
            "standard_error": float(np.std(false_share, ddof=1) / math.sqrt(splits)),
            "anomalous_queries": strangers,
            "found": float(np.mean(power)),
        },
    }


def _uniform(found: list[float], n: int, m: int, rng: np.random.Generator) -> dict[str, Any]:
    """Test whether the Kolmogorov-Smirnov p-values of many divisions are uniform.

    In finite samples these p-values are discrete and not quite uniform. So they are also compared
    with p-values of random divisions of n + m different numbers. These are what exchangeable images
    would give.

    Parameters
    ----------
    found : list of float
        P-values, one for each division.
    n, m : int
        Number of calibration images and of normal queries.
    rng : numpy.random.Generator
        Draws the random divisions.
    """
    exact = [
        float(ks_2samp(order[:n], order[n:]).pvalue)
        for order in (rng.permutation(n + m) for _ in range(PERMUTATIONS))
    ]
    return {
        "p_values": found,
        "p_of_p_values": float(kstest(found, "uniform").pvalue),
        "p_against_permutations": float(ks_2samp(found, exact).pvalue),
        "mean": float(np.mean(found)),
        "mean_of_permutations": float(np.mean(exact)),
    }


def _alarms(counts: list[int], n: int, m: int, j: int) -> dict[str, Any]:
    low, high = (int(x) for x in betabinom.ppf((0.025, 0.975), m, j, n + 1 - j))
    return {
        "promised": j / (n + 1),
        "realised": float(np.mean(counts) / m),
        "alarms": counts,
        "interval95": [low, high],
        "inside": sum(low <= count <= high for count in counts),
    }


def splits(split: data.Split, seed: int, settings: dict[str, Any]) -> dict[str, Any]:
    """Train on a class, and divide the pool of its held-out normals and normal test images.

    `settings` are those of the training; ``splits`` among them is the number of divisions.
    """
    many = settings.pop("splits", SPLITS)
    done = train(split, seed, settings)
    judge, terms = done.judge, done.terms
    model, odd = done.detector.model, split.anomalous
    scores = judge.scorer.scores(terms, DEFAULT_SCORE)
    pool = np.concatenate([model.calibration.terms, terms[~odd]])
    return {
        "auroc": float(roc_auc_score(odd, scores)),
        "cpu_seconds": done.seconds,
        "as_trained": _as_trained(judge, scores, odd),
        **resplit(
            model,
            done.detector.runtime,
            pool,
            terms[odd],
            strangers=min(int(odd.sum()), round(ODD / (1 - ODD) * len(pool) / 2)),
            splits=many,
            seed=seed,
        ),
    }


def _as_trained(judge: Judge, scores: Terms, odd: data.Flags) -> dict[str, Any]:
    """Count verdicts on unseen images with `scores` (m,), of which some are `odd` (m,)."""
    normal = scores[~odd]
    n, m, found = len(judge.model.calibration.terms), len(normal), {}
    for rate in RATES:
        level = judge.threshold(ScoreRequest(false_alarm_rate=rate)).score
        j = max(1, math.floor(rate * (n + 1) + 1e-9))
        found[str(rate)] = _alarms([int((normal > level).sum())], n, m, j)
        found[str(rate)]["recall"] = float((scores[odd] > level).mean())
    return {"calibration_images": n, "normal_queries": m, "rates": found}


def folds(split: data.Split, seed: int, settings: dict[str, Any]) -> dict[str, Any]:
    """Train on few images, and compare calibration on all of them with that on held-out normals.

    All images can be used because the model is calibrated in folds.
    """
    done = train(split, seed, settings | {"calibration_folds": FOLDS})
    detector, judge, terms = done.detector, done.judge, done.terms
    found: dict[str, Any] = {"folds": FOLDS, "cpu_seconds": done.seconds}
    scores, odd = judge.scorer.scores(terms, DEFAULT_SCORE), split.anomalous
    found["auroc"] = float(roc_auc_score(odd, scores))
    found["all_images"] = _as_trained(judge, scores, odd)
    # Terms of held-out normals come first, and those of the folds follow.
    calibration = detector.model.calibration
    held = calibration.terms[: detector.model.metadata["training_data"]["held_out"]]
    alone = dataclasses.replace(
        detector.model, calibration=dataclasses.replace(calibration, terms=held)
    )
    judge = Judge(alone, detector.runtime)
    scores = judge.scorer.scores(terms, DEFAULT_SCORE)
    found["held_out_alone"] = _as_trained(judge, scores, odd)
    return found


def suspects(split: data.Split, seed: int, settings: dict[str, Any]) -> dict[str, Any]:
    """Train on normal images that contain images of other classes, and without suspects.

    The result compares the training on the mixed folder, the same with ``drop_suspects``, and a
    training on normal images alone. It also holds the share of the foreign images that are among
    the first 5, 10 and 20 % of the suspects.
    """
    clean = data.load(split.name, split.cls.partition(".")[0], seed=seed)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        files = data.write_folder(split.train, folder / "train")
        data.write_folder(clean.train, folder / "clean")
        data.write_folder(split.test, folder / "test")
        # Images of other classes were added at the end.
        strangers = {file.as_posix() for file in files[len(clean.train) :]}

        def measured(detector: Detector) -> dict[str, float]:
            judge = Judge(detector.model, detector.runtime)
            terms, _ = raw_terms(judge, folder / "test")
            scores = judge.scorer.scores(terms, DEFAULT_SCORE)
            called = scores > judge.threshold(ScoreRequest(false_alarm_rate=RATES[0])).score
            return {
                "auroc": float(roc_auc_score(split.anomalous, scores)),
                "false_alarm_rate": float(called[~split.anomalous].mean()),
                "recall": float(called[split.anomalous].mean()),
            }

        options = settings | {"seed": seed, "workers": 1}
        path = folder / "model.safetensors"
        start = time.process_time()
        detector = Detector.train(folder / "train", path=path, **options)
        before = measured(detector)
        ranking = job.rank(
            detector.model,
            detector.reference,
            detector.runtime,
            [folder / "train"],
            lambda progress: None,
        )
        odd = np.array([image.path in strangers for image in ranking.images])
        options["force"] = True
        dropping = options | {"drop_suspects": True}
        after = measured(Detector.train(folder / "train", path=path, **dropping))
        without = measured(Detector.train(folder / "clean", path=path, **options))
    lost = without["auroc"] - before["auroc"]
    return {
        "auroc": after["auroc"],
        "cpu_seconds": time.process_time() - start,
        "strangers": len(strangers),
        "found_in_first": {
            str(share): float(odd[: round(share * len(odd))].sum() / odd.sum())
            for share in (0.05, 0.1, 0.2)
        },
        "mixed": before,
        "dropped": after,
        "clean": without,
        "won_back": (after["auroc"] - before["auroc"]) / lost,
    }


def compute(cell: Cell, command: str) -> dict[str, Any]:
    """Measure a cell, and keep the result with the commit and command that made it."""
    import torch

    torch.set_num_threads(1)
    split = data.load(cell.data.removeprefix("calibration/"), cell.cls, seed=cell.seed)
    measure = {"splits": splits, "folds": folds, "suspects": suspects}[cell.method]
    found = measure(split, cell.seed, dict(cell.settings))
    return keep(cell, found | cells.sizes(split), command)


def tables() -> str:
    """Lay out the kept results in a table for each of the three measurements."""
    kept = cells.load("calibration/*")

    def of(method: str) -> list[dict[str, Any]]:
        return [result for result in kept if result["method"] == method]

    titles = ["set", "class", "calibration, queries", "1 %: rate, inside", "5 %", "10 %"]
    titles += ["false discoveries at q 0.1", "of the anomalies, found"]
    few = ["set", "class", "calibrated on", "images", "at 1 %", "at 5 %", "at 10 %"]
    strangers = ["set", "class", "strangers in the first tenth of suspects", "as given"]
    strangers += ["`--drop-suspects`", "clean images", "won back"]
    parts = ("as_trained", "all_images", "held_out_alone")
    return markdown.sections(
        {
            "Divisions of unseen normal images": (titles, [_split_cells(r) for r in of("splits")]),
            "One draw: false alarms among unseen normal images": (
                few,
                [
                    _draw_cells(result, part)
                    for result in of("splits") + of("folds")
                    for part in parts
                    if part in result
                ],
            ),
            "Strangers among the normal images": (
                strangers,
                [_suspect_cells(r) for r in of("suspects")],
            ),
        }
    )


def _where(result: dict[str, Any]) -> list[str]:
    return [result["data"].removeprefix("calibration/"), result["cls"]]


def _split_cells(result: dict[str, Any]) -> list[str]:
    rates = [
        f"{of['realised']:.2%} (promised {of['promised']:.2%}), {of['inside']}/{len(of['alarms'])}"
        for of in result["rates"].values()
    ]
    fdr = result["fdr"]
    false = f"{fdr['mean']:.3f} ± {fdr['standard_error']:.3f}"
    images = f"{result['calibration_images']}, {result['normal_queries']}"
    return [*_where(result), images, *rates, false, f"{fdr['found']:.0%}"]


def _draw_cells(result: dict[str, Any], part: str) -> list[str]:
    draw = result[part]
    rates = [
        f"{of['realised']:.1%}"
        + ("" if of["inside"] else " (outside)")
        + (f", {of['recall']:.0%} found" if "recall" in of else "")
        for of in draw["rates"].values()
    ]
    return [*_where(result), part.replace("_", " "), str(draw["calibration_images"]), *rates]


def _suspect_cells(result: dict[str, Any]) -> list[str]:
    aurocs = [f"{result[part]['auroc']:.3f}" for part in ("mixed", "dropped", "clean")]
    found, won = result["found_in_first"]["0.1"], result["won_back"]
    return [*_where(result), f"{found:.0%}", *aurocs, f"{won:.0%}"]


def main() -> None:
    """Compute missing cells, with a line each on stderr; print JSON of all cells."""
    parser = cells.parser(__doc__)
    parser.add_argument("what", choices=("splits", "folds", "suspects"))
    parser.add_argument("--data", type=cells.listed, help="all by default")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--images-shown", type=int, help="16,000 for splits by default")
    parser.add_argument("--splits", type=int, help=f"divisions of splits, {SPLITS} by default")
    options = parser.parse_args()
    sets = {"splits": SETS, "folds": FEW, "suspects": SUSPECTS}[options.what]
    shown = options.images_shown or {"splits": 16_000}.get(options.what)
    given = {"images_shown": shown, "splits": options.splits}
    settings = tuple((key, value) for key, value in given.items() if value)
    wanted = [
        Cell(f"calibration/{name}", cls, options.seed, options.what, settings)
        for name in options.data or sets
        for cls in options.classes or sets[name]
    ]
    cells.sweep(wanted, compute, options)


if __name__ == "__main__":
    main()
