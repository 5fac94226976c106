"""Measure exported models beside torch: ``python -m benchmarks.scale export MODEL``.

It prints milliseconds an image, in batches of 1 and of 64, for torch, ONNX Runtime, the same with
8-bit weights (dynamic quantisation) and 8-bit throughout (static quantisation), and OpenVINO where
it is installed. All run on one thread. Beside them stands the AUROC on the test images of a set.
"""

from __future__ import annotations

import argparse
import functools
import os
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.metrics import roc_auc_score

from anoscan import Detector
from anoscan.core.errors import AnoscanWarning
from anoscan.export import graph, parity
from anoscan.export.real_images import as_seen
from anoscan.scoring.choices import DEFAULT_SCORE
from benchmarks import data, markdown

ROUNDS = 5
BATCHES = (1, 64)
CALIBRATED = 128  # training images that static quantisation takes ranges of
Scores = Callable[[np.ndarray], np.ndarray]


def best(run: Callable[[], Any]) -> float:
    """Return the shortest time of some calls, in seconds."""
    run()
    times = []
    for _ in range(ROUNDS):
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return min(times)


def by_torch(detector: Detector) -> Scores:
    """Return the function of anoscan itself: terms that count, maps and scores of samples."""
    model, scorer = detector.model, detector._judge.scorer
    names = scorer.terms(DEFAULT_SCORE)

    def scores(samples: np.ndarray) -> np.ndarray:
        x = torch.from_numpy(as_seen(samples, model.rule))
        measured = model.measurer.measure(x, mapped=True, only=names)
        return scorer.scores(measured.terms, DEFAULT_SCORE)

    return scores


def by_onnx(file: Path) -> Scores:
    """Return the function of a file, by ONNX Runtime."""
    running = parity.session(file)
    return lambda samples: running.run(list(graph.OUTPUTS), {graph.INPUT: samples})[0]


def by_openvino(file: Path) -> Scores:
    """Return the function of a file, by OpenVINO."""
    import openvino

    compiled = openvino.Core().compile_model(
        file, "CPU", {"INFERENCE_NUM_THREADS": 1, "INFERENCE_PRECISION_HINT": "f32"}
    )
    return lambda samples: compiled(samples)["score"]


class Ranges:
    """Reads training images to static quantisation, which takes ranges of activations of them."""

    def __init__(self, samples: np.ndarray) -> None:
        self._batches = iter(np.array_split(samples, max(1, len(samples) // 16)))

    def get_next(self) -> dict[str, np.ndarray] | None:
        """Return the next batch as an input, or None after the last."""
        batch = next(self._batches, None)
        return None if batch is None else {graph.INPUT: batch}


def quantised(file: Path, folder: Path, samples: np.ndarray) -> Iterator[tuple[str, Path]]:
    """Yield the names and files of the quantised graphs."""
    from onnxruntime import quantization as q

    prepared = folder / "prepared.onnx"
    q.shape_inference.quant_pre_process(file, prepared, skip_symbolic_shape=True)
    q.quantize_dynamic(prepared, folder / "dynamic.onnx", op_types_to_quantize=["Conv", "Gemm"])
    yield "ONNX Runtime, 8-bit weights", folder / "dynamic.onnx"
    q.quantize_static(
        prepared,
        folder / "static.onnx",
        Ranges(samples),
        quant_format=q.QuantFormat.QDQ,
        op_types_to_quantize=["Conv", "Gemm"],
        per_channel=True,
    )
    yield "ONNX Runtime, 8 bits throughout", folder / "static.onnx"


def ways(detector: Detector, folder: Path, train: np.ndarray) -> Iterator[tuple[str, Scores]]:
    """Yield the ways to score by name; one that fails says so and is left out."""
    yield "torch", by_torch(detector)
    file = folder / "model.onnx"
    graph.scoring_file(detector.model, detector._judge.scorer, file)
    yield "ONNX Runtime", by_onnx(file)
    try:
        for name, other in quantised(file, folder, train[:CALIBRATED]):
            yield name, by_onnx(other)
    except Exception as error:  # of any of the libraries
        print(f"quantisation: {error}")
    try:
        yield "OpenVINO", by_openvino(file)
    except Exception as error:  # also where it is not installed
        print(f"OpenVINO: {type(error).__name__}: {str(error).splitlines()[0]}")


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", help="name or path of a model of 8-bit images")
    parser.add_argument("--set", default="mnist", help="set that AUROC is measured on")
    parser.add_argument("--class", dest="cls", default="2", help="class of it that is normal")
    parser.add_argument("--images", type=int, default=2000, help="test images, at most")
    asked = parser.parse_args(arguments)
    torch.set_num_threads(1)
    os.environ["OMP_NUM_THREADS"] = "1"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", AnoscanWarning)
        detector = Detector.load(asked.model, device="cpu")
    split = data.load(asked.set, asked.cls, seed=0)
    chosen = np.random.default_rng(0).permutation(len(split.test))[: asked.images]
    test, anomalous = samples_of(split.test[chosen]), split.anomalous[chosen]
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        first: np.ndarray | None = None
        for name, scores in ways(detector, Path(folder), samples_of(split.train)):
            times = [best(functools.partial(scores, test[:n])) / n for n in BATCHES]
            found = np.concatenate([scores(x) for x in np.array_split(test, len(test) // 50)])
            first = found if first is None else first
            rows.append(
                [
                    name,
                    *(f"{1000 * seconds:.2f}" for seconds in times),
                    f"{roc_auc_score(anomalous, found):.4f}",
                    f"{np.abs(found - first).max():.1e}",
                ]
            )
            print(rows[-1], flush=True)
    header = ["by", "ms an image, alone", "ms an image, of 64", "AUROC", "largest difference"]
    print(markdown.table(header, rows))
    return 0


def samples_of(images: np.ndarray) -> np.ndarray:
    """Return images (n, h, w) or (n, h, w, 3) as a graph takes them, (n, c, h, w) uint8."""
    planes = images[:, None] if images.ndim == 3 else np.moveaxis(images, 3, 1)
    return np.ascontiguousarray(planes)


if __name__ == "__main__":
    raise SystemExit(main())
