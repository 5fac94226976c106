"""The check that an exported file gives the same results as anoscan."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from anoscan.core.errors import ModelError
from anoscan.core.results import Parity
from anoscan.export.graph import INPUT, OUTPUTS, Kind
from anoscan.export.real_images import RealImages, as_seen, planted
from anoscan.model.model import Model
from anoscan.model.score_of_terms import Scorer
from anoscan.scoring import calibration
from anoscan.scoring.choices import DEFAULT_SCORE
from anoscan.scoring.measure import CHUNK

# The largest differences that may be, each in the unit of its output: scores and maps are in
# standard deviations of normal images, reconstructions in shares of the range from black to white.
TOLERANCE = {"score": 0.01, "map": 0.01, "reconstruction": 0.001}
TIE = 1e-4  # images whose scores differ by less may change places in the ranking
BATCHES = (1, 3)  # the sizes of the first batches, which show that any size can be taken
Found = dict[str, NDArray[Any]]
Run = Callable[[NDArray[Any]], Sequence[NDArray[Any]]]


def session(file: Path | bytes) -> Any:
    """Return an ONNX Runtime session on the processor, with as many threads as torch has.

    Raises
    ------
    ModelError
        When the file is no ONNX file, or needs operations that this ONNX Runtime lacks.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3  # errors alone
    given = file if isinstance(file, bytes) else str(file)
    try:
        return onnxruntime.InferenceSession(given, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # its errors have no base class of their own
        named = "the exported graph" if isinstance(file, bytes) else file
        reason = str(error).strip().splitlines()[0]
        raise ModelError(
            f"ONNX Runtime {onnxruntime.__version__} cannot load {named}: {reason}.",
            hint="Use a newer onnxruntime.",
        ) from error


def check(model: Model, scorer: Scorer, file: Path, images: RealImages, threshold: float) -> Parity:
    """Compare an ONNX file with anoscan on real images, and on the same with planted defects.

    Parameters
    ----------
    model, scorer
        The model, and the scores of its terms.
    file : Path
    images : RealImages
    threshold : float
        The score that anomalous images exceed.
    """
    import onnxruntime

    running = session(file)
    samples = np.concatenate([images.samples, planted(images.samples, model.rule)])
    ours = torch_outputs(model, scorer, samples)
    theirs = run_in_batches(lambda x: running.run(list(OUTPUTS), {INPUT: x}), samples)
    kind = Kind.of(model.rule)
    scale = {"reconstruction": abs(kind.white - kind.black)}
    largest = {
        name: float(np.abs(ours[name] - theirs[name]).max()) / scale.get(name, 1.0)
        for name in OUTPUTS
    }
    exceeded = tuple(name for name, most in TOLERANCE.items() if not largest[name] <= most)
    verdicts = int(((ours["score"] > threshold) != (theirs["score"] > threshold)).sum())
    ranks = _swapped(ours["score"], theirs["score"])
    return Parity(
        passed=not (exceeded or verdicts or ranks),
        images=len(images.samples),
        with_defects=len(samples) - len(images.samples),
        source=images.source,
        runtime=f"onnxruntime {onnxruntime.__version__}",
        anomalous=int((ours["score"] > threshold).sum()),
        largest_difference=largest,
        tolerance=dict(TOLERANCE),
        exceeded=exceeded,
        verdicts_differ=verdicts,
        ranks_differ=ranks,
    )


def torch_outputs(model: Model, scorer: Scorer, samples: NDArray[Any]) -> Found:
    """Return what anoscan itself says of samples (n, c, s, s), by the names of the outputs."""
    parts = []
    for start in range(0, len(samples), CHUNK):
        x = as_seen(samples[start : start + CHUNK], model.rule)
        parts.append(model.measurer.measure(torch.from_numpy(x), mapped=True))
    scores = scorer.scores(np.concatenate([part.terms for part in parts]), DEFAULT_SCORE)
    maps = np.concatenate([part.anomaly_map for part in parts])
    if model.rule.roi is not None:
        maps = np.where(model.rule.roi.part((0, 0), maps.shape[1:], maps.shape[1:]), maps, 0)
    kind = Kind.of(model.rule)
    x_hat = np.concatenate([part.x_hat for part in parts]).astype(np.float64)
    return {
        "score": scores,
        "p_value": calibration.p_values(scores, scorer.calibration_scores(DEFAULT_SCORE)),
        "map": maps,
        "reconstruction": (x_hat + 1) / 2 * (kind.white - kind.black) + kind.black,
    }


def run_in_batches(run: Run, samples: NDArray[Any]) -> Found:
    """Return what a graph says of samples (n, c, s, s), in batches of several sizes."""
    parts, start = [], 0
    for size in (*BATCHES, *[CHUNK] * (len(samples) // CHUNK + 1)):
        if start < len(samples):
            parts.append(run(samples[start : start + size]))
        start += size
    return {
        name: np.concatenate([part[place] for part in parts]) for place, name in enumerate(OUTPUTS)
    }


def _swapped(ours: NDArray[Any], theirs: NDArray[Any]) -> int:
    """Return how many neighbours in our ranking have the other order in theirs, but for ties."""
    order = np.argsort(-ours, kind="stable")
    apart = -np.diff(ours[order]) > TIE
    return int((apart & (np.diff(theirs[order]) >= 0)).sum())


def refuse(parity: Parity, name: str) -> None:
    """Raise an error that says what differs, unless the check was passed.

    Raises
    ------
    ModelError
        When it was not.
    """
    if parity.passed:
        return
    found = [
        f"the {part} differs by up to {parity.largest_difference[part]:.3g}, where "
        f"{parity.tolerance[part]:g} is allowed"
        for part in parity.exceeded
    ]
    of = f"of {parity.images + parity.with_defects} images"
    if parity.verdicts_differ:
        found.append(f"{parity.verdicts_differ} verdicts {of} differ")
    if parity.ranks_differ:
        found.append(f"{parity.ranks_differ} ranks {of} differ")
    raise ModelError(
        f"the ONNX file of {name} does not give the results of anoscan: {'; '.join(found)}.",
        hint="Nothing was written. Score with anoscan itself, or try another onnxruntime.",
    )
