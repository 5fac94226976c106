"""Compare a card with the CPU: ``python -m benchmarks.gpu_check FOLDER [--device cuda]``.

One model is trained on the card, and scores the same images there and on the CPU. Scores must agree
to `TOLERANCE`, and verdicts but for images that lie so near to the threshold. The result is one
JSON document, with images a second. `benchmarks/gpu_check.sh` runs it on a machine with a card.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from anoscan import Detector
from anoscan.core.runtime import exact_float32
from anoscan.scoring.terms import Evidence
from benchmarks.speed import drawn, save

# Largest difference of a score, in standard deviations of held-out normals. Convolutions of a card
# add in another order than those of a processor; both are float32.
TOLERANCE = 0.01
SIDES = (28, 64, 128)
NORMAL, QUERIES, SHOWN = 600, 400, 6400
_PASSES = 20


def check(side: int, folder: Path, device: str) -> dict[str, Any]:
    """Train at a side on the device, score there and on the CPU, and compare."""
    for name, count, first in (("normal", NORMAL, 0), ("queries", QUERIES, 1)):
        (folder / name).mkdir(parents=True, exist_ok=True)
        for number in range(count):
            save(drawn((side, side), 10 * number + 9 * first), folder / name / f"{number:05}.png")
    path, start = folder / "m.safetensors", time.monotonic()
    trained = Detector.train(
        folder / "normal", path=path, device=device, size=side, images_shown=SHOWN, force=True
    )
    seconds = time.monotonic() - start
    scores = {}
    rates = {}
    for where in (device, "cpu"):
        detector = Detector.load(path, device=where)
        detector.score(folder / "queries")  # the first run chooses kernels
        start = time.monotonic()
        report = detector.score(folder / "queries")
        rates[where] = QUERIES / (time.monotonic() - start)
        scores[where] = {image.path: image for image in report.images}
    differences = [
        abs(image.score - scores["cpu"][path].score) for path, image in scores[device].items()
    ]
    threshold = trained.threshold().score
    verdicts = [
        path
        for path, image in scores[device].items()
        if image.verdict != scores["cpu"][path].verdict and abs(image.score - threshold) > TOLERANCE
    ]
    return {
        "side": side,
        "training_seconds": seconds,
        "stages": trained.report.seconds if trained.report else {},
        "precision": trained.report.precision if trained.report else "",
        "largest_difference": max(differences),
        "verdicts_that_differ": len(verdicts),
        "images_a_second": rates,
        "network_images_a_second": {where: _passes(path, where) for where in (device, "cpu")},
        "ok": max(differences) <= TOLERANCE and not verdicts,
    }


def _passes(path: Path, device: str) -> float:
    """Return how many images a second pass all networks, in batches of 64."""
    import torch

    detector = Detector.load(path, device=device)
    side = detector.model.rule.size
    x = torch.rand(64, detector.model.rule.channels, side, side, device=device) * 2 - 1

    def once() -> None:
        with exact_float32():
            evidence = Evidence(detector.model.networks, x)
            _ = evidence.x_hat, evidence.features_hat, evidence.rotations

    once()
    if device == "cuda":
        torch.cuda.synchronize()
    start = time.monotonic()
    for _ in range(_PASSES):
        once()
    if device == "cuda":
        torch.cuda.synchronize()
    return _PASSES * len(x) / (time.monotonic() - start)


def main(arguments: Sequence[str] | None = None) -> int:
    """Check all sides, and print the result as JSON; 1 where a side is not ok."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--sides", type=int, nargs="+", default=list(SIDES))
    given = parser.parse_args(arguments)
    results = []
    for side in given.sides:
        results.append(check(side, given.folder / str(side), given.device))
        print(f"{side}: {results[-1]}", file=sys.stderr, flush=True)
    print(json.dumps({"tolerance": TOLERANCE, "sides": results}, indent=1))
    return 0 if all(result["ok"] for result in results) else 1


if __name__ == "__main__":
    raise SystemExit(main())
