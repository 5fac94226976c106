"""Estimate time and cost of training on several GPUs, and say what estimates of large runs assume.

No GPU was measured. A step takes as long as its computing, by an assumed factor faster than that of
the measured core, or as long as starting its operators, whichever is more.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from statistics import median
from typing import Any

import numpy as np

from benchmarks import markdown
from benchmarks.scale_measure import WHOLE

Measured = Mapping[str, Any]
GPUS = (1, 8, 64)


@dataclass(frozen=True)
class Assumed:
    """What was not measured. Storage figures are those of Amazon S3 as its documents give them.

    Parameters
    ----------
    latency_s, latency_p99_s : float
        Median and 99th percentile of the seconds until the first byte of a small object; the
        "Best practices design patterns" of S3 give roughly 100 to 200 milliseconds.
    requests_s : float
        GET requests a second of one prefix (the same document: at least 5,500).
    prefixes : int
        Prefixes over which the images are spread.
    bandwidth : float
        Bytes a second of one worker: an eighth of a network card of 10 Gbit/s.
    failed : float
        Share of fetches that fail once and are tried again.
    slow, slow_factor : float
        Share of slow workers, and how much longer they take.
    lost_hours, restart_s : float
        Hours until a worker is lost, on average, and seconds until another takes its place.
    start_s : float
        Seconds in which a cluster starts.
    driver_bytes : float
        Memory of the driver.
    core_price, gpu_price, gets_price, lists_price : float
        Dollars for an hour of a core, an hour of a GPU, 1,000 GETs and 1,000 LISTs.
    gpu_factor : float
        How much faster a GPU computes than the measured core.
    launch_s : float
        Seconds in which a GPU starts one operator.
    near_s, far_s, near_bandwidth, far_bandwidth : float
        Seconds of one exchange and its bytes a second: up to 8 GPUs in one machine, and beyond.
    """

    latency_s: float = 0.12
    latency_p99_s: float = 0.6
    requests_s: float = 5500
    prefixes: int = 1
    bandwidth: float = 1.25e9 / 8
    failed: float = 0.001
    slow: float = 0.05
    slow_factor: float = 2.0
    lost_hours: float = 500
    restart_s: float = 60
    start_s: float = 20
    driver_bytes: float = 64e9
    core_price: float = 0.05
    gpu_price: float = 2.5
    gets_price: float = 0.0004
    lists_price: float = 0.005
    gpu_factor: float = 50
    launch_s: float = 10e-6
    near_s: float = 30e-6
    far_s: float = 100e-6
    near_bandwidth: float = 100e9
    far_bandwidth: float = 10e9


ASSUMED = Assumed()


def step_seconds(
    stage: Measured, images: float, gpus: int, assumed: Assumed
) -> tuple[float, float, float]:
    """Return seconds of a step that are computing, starting operators, and exchanging."""
    parts = sorted(map(int, stage["seconds"]))
    # The first of the measured steps has the penalty, which comes in every eighth step.
    means = [
        stage["seconds"][str(part)][0] / 8 + 7 / 8 * median(stage["seconds"][str(part)][1:])
        for part in parts
    ]
    slope, least = np.polyfit(parts, means, 1)
    compute = (max(0.0, float(least)) + float(slope) * images) / assumed.gpu_factor
    launches = stage["operators"] * assumed.launch_s
    if gpus == 1:
        return compute, launches, 0.0
    near = gpus <= 8
    delay = assumed.near_s if near else assumed.far_s
    rate = assumed.near_bandwidth if near else assumed.far_bandwidth
    # One more exchange a step lets all processes stop together.
    sent = 2 * (gpus - 1) / gpus * stage["bytes"] / rate
    return compute, launches, (stage["exchanges"] + 1) * delay + sent


def waiting(measured: Measured, gpus: int, seed: int = 0) -> float:
    """Return how much longer the slowest of so many processes takes than one of them."""
    ratios = [
        value / median(times[1:])
        for side in measured["training"].values()
        for stage in side["stages"].values()
        for times in stage["seconds"].values()
        for value in times[1:]
    ]
    rng = np.random.default_rng(seed)
    return float(rng.choice(ratios, (2000, gpus)).max(1).mean() / np.mean(ratios))


def training(
    measured: Measured, side: str, gpus: int, batch: int, assumed: Assumed = ASSUMED
) -> dict[str, Any]:
    """Estimate a training of the default length, with so many images in a step."""
    rest, steps, late = 0.0, 0.0, waiting(measured, gpus)
    parts = {"computing": 0.0, "starting operators": 0.0, "exchanges": 0.0}
    for stage in measured["training"][side]["stages"].values():
        number = math.ceil(stage["steps"] * WHOLE / batch)
        compute, launches, exchange = step_seconds(stage, batch / gpus, gpus, assumed)
        longer = "computing" if compute > launches else "starting operators"
        parts[longer] += number * max(compute, launches) * late
        parts["exchanges"] += number * exchange
        alone = step_seconds(stage, WHOLE, 1, assumed)
        rest += stage["steps"] * max(alone)
        steps += number
    # Calibration and self-test take a fifth of a training, and rank 0 does them alone.
    parts["rank 0 alone"] = rest / 4
    seconds = sum(parts.values())
    return {
        "seconds": seconds,
        "step_ms": 1000 * (seconds - parts["rank 0 alone"]) / steps,
        "price": seconds / 3600 * gpus * assumed.gpu_price,
        "bottleneck": max(parts, key=parts.__getitem__),
    }


def training_table(measured: Measured, assumed: Assumed) -> str:
    """Return a table with a row for each size of images, number of GPUs and batch."""
    titles = ["side", "networks", "GPUs", "batch", "step, ms", "time", "speed-up", "$"]
    rows = []
    for side in sorted(measured["training"], key=int):
        alone = training(measured, side, 1, WHOLE, assumed)["seconds"]
        for gpus in GPUS:
            for batch in dict.fromkeys((max(WHOLE, gpus), WHOLE * gpus)):
                found = training(measured, side, gpus, batch, assumed)
                row = [side, measured["training"][side]["architecture"], str(gpus), f"{batch:,}"]
                row += [f"{found['step_ms']:.3g}", duration(found["seconds"])]
                row += [f"{alone / found['seconds']:.2g}", f"{found['price']:.2g}"]
                rows.append([*row, found["bottleneck"]])
    return markdown.table([*titles, "bottleneck"], rows)


def duration(seconds: float) -> str:
    """Show a duration in a unit that people use."""
    for unit, length in (("years", 31_557_600), ("days", 86_400), ("hours", 3600), ("min", 60)):
        if seconds >= 1.5 * length:
            return f"{seconds / length:,.3g} {unit}"
    return f"{seconds:.3g} s"
