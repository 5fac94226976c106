"""Score with ONNX Runtime in place of torch: the same results, measured by a recorded graph.

The graph of a model is recorded when it is first asked for, and kept in the folder ``onnx`` of the
store. Its name is the hash of the model, so another model never gets it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

import anoscan
from anoscan.core.errors import ModelError, UsageError
from anoscan.core.files import temporary_folder
from anoscan.core.runtime import exact_float32, random_stream
from anoscan.export.graph import check_installed, measuring_file
from anoscan.export.parity import TOLERANCE, session
from anoscan.model import store
from anoscan.model.model import Model
from anoscan.model.score_of_terms import Scorer
from anoscan.networks.augmentation import with_defects
from anoscan.scoring.choices import DEFAULT_SCORE, ENCODER, Inversion, ScoreRequest
from anoscan.scoring.measure import Measured, Measurer, residual
from anoscan.scoring.terms import Evidence

RUNTIMES = ("torch", "onnx")
_KEPT = 8  # graphs; the one that was used longest ago goes first
_CHECKED = 16  # generated images that a new graph is checked with
_OUTPUTS = ("terms", "map", "x_hat")


@dataclass(frozen=True)
class OnnxMeasurer(Measurer):
    """A measurer of the terms of the default score, by ONNX Runtime on the processor.

    Parameters
    ----------
    names : tuple of str
        The terms that the graph measures; other terms are not a number.
    running : InferenceSession
    """

    names: tuple[str, ...] = ()
    running: Any = None

    def evidence(
        self, x: Tensor, how: Inversion = ENCODER, only: Collection[str] | None = None
    ) -> Evidence:
        """Run the graph on images (n, c, s, s), whatever terms are asked for."""
        if how.mapping != "encoder":
            raise _refused(f"--mapping {how.mapping}")
        found = self.running.run(list(_OUTPUTS), {"x": x.numpy()})
        outputs = dict(zip(_OUTPUTS, map(torch.from_numpy, found), strict=True))
        evidence = Evidence(self.networks, x, x_hat=outputs["x_hat"])
        for name in ("terms", "map"):
            evidence.once(("onnx", name), lambda name=name: outputs[name])  # type: ignore[misc]
        return evidence

    def of_evidence(
        self, evidence: Evidence, *, mapped: bool = False, only: Collection[str] | None = None
    ) -> Measured:
        """Return what the graph measured; see `Measurer.of_evidence`."""
        if missing := set(only or ()) - set(self.names):
            raise _refused(f"the term {min(missing)}")
        n, columns = len(evidence.x), list(self.fitted)
        terms = np.full((n, len(columns)), np.nan)
        places = [columns.index(name) for name in self.names]
        terms[:, places] = evidence.once(("onnx", "terms"), _not_run).numpy()
        charts = evidence.once(("onnx", "map"), _not_run).numpy()
        return Measured(
            terms,
            evidence.x_hat.numpy(),
            residual(evidence).numpy(),
            np.ones_like(terms),
            charts if mapped else np.empty((n, 0, 0), np.float32),
        )


def _not_run() -> Tensor:
    raise RuntimeError("the evidence is not of this measurer")


def check_runtime(runtime: str, device: str) -> None:
    """Refuse a runtime that there is not, or that does not compute on a device.

    Raises
    ------
    UsageError
        For either, and where the extra ``onnx`` is not installed.
    """
    if runtime not in RUNTIMES:
        raise UsageError(f"--runtime must be one of {', '.join(RUNTIMES)}. Got {runtime!r}.")
    if runtime == "torch":
        return
    if device not in ("auto", "cpu"):
        raise UsageError(f"--runtime onnx computes on the processor, not with --device {device}.")
    check_installed("--runtime onnx")


def device_for(runtime: str, device: str) -> str:
    """Return the device that a runtime computes on where a user named `device`; check both."""
    check_runtime(runtime, device)
    return device if runtime == "torch" else "cpu"


def check_request(runtime: str, request: ScoreRequest) -> None:
    """Refuse a score or a mapping that ONNX Runtime cannot compute.

    Raises
    ------
    UsageError
        When the graph lacks what the request needs.
    """
    if runtime == "torch":
        return
    if request.score != DEFAULT_SCORE:
        raise _refused(f"--score {request.score}")
    if request.inversion.mapping != "encoder":
        raise _refused(f"--mapping {request.inversion.mapping}")


def _refused(what: str) -> UsageError:
    return UsageError(
        f"--runtime onnx cannot compute {what}: it computes the {DEFAULT_SCORE} score by one pass "
        "of the encoder.",
        hint="Use --runtime torch.",
    )


def measurer_of(runtime: str, model: Model, sha256: str) -> OnnxMeasurer | None:
    """Return what measures images by a runtime, or None for torch, which a model has itself.

    The graph of a model on the CPU is recorded unless it is kept.

    Raises
    ------
    ModelError
        When a part of the model cannot be exported, or the graph gives other results than torch.
    """
    if runtime == "torch":
        return None
    names = Scorer(model.fitted, model.calibration).terms(DEFAULT_SCORE)
    folder = store.home() / "onnx"
    file = folder / f"{sha256}-{anoscan.__version__}.onnx"
    plain = model.measurer
    own = {field.name: getattr(plain, field.name) for field in dataclasses.fields(plain)}
    if file.exists():
        with suppress(ModelError):  # a damaged file, or one of a newer ONNX Runtime, is made again
            found = OnnxMeasurer(**own, names=names, running=session(file))
            with suppress(OSError):
                file.touch()
            return found
    with temporary_folder(folder) as temporary:
        made = temporary / file.name
        measuring_file(model, names, made)
        found = OnnxMeasurer(**own, names=names, running=session(made))
        _check(model, found)
        made.replace(file)
    _forget(folder)
    return found


def _check(model: Model, found: OnnxMeasurer) -> None:
    """Compare a new graph with torch on generated images, half of which have defects."""
    scorer = Scorer(model.fitted, model.calibration)
    draw = random_stream(0, "onnx")
    z = torch.randn(_CHECKED, model.config.latent_dim, generator=draw)
    with exact_float32():
        x = model.networks.generator(z)
    x = torch.cat([x[::2], with_defects(x[1::2], draw)])
    ours, theirs = (m.measure(x, mapped=True, only=found.names) for m in (model.measurer, found))
    scores = [scorer.scores(measured.terms, DEFAULT_SCORE) for measured in (ours, theirs)]
    apart = {
        "score": np.abs(scores[0] - scores[1]).max(),
        "map": np.abs(ours.anomaly_map - theirs.anomaly_map).max(),
        "reconstruction": np.abs(ours.x_hat - theirs.x_hat).max() / 2,
    }
    for name, difference in apart.items():
        if not difference <= TOLERANCE[name]:
            raise ModelError(
                f"ONNX Runtime does not give the results of torch: the {name} of generated images "
                f"differs by up to {difference:.3g}, where {TOLERANCE[name]:g} is allowed.",
                hint="Use --runtime torch, or another onnxruntime.",
            )


def _forget(folder: Path) -> None:
    """Remove all but the newest graphs, as far as the system allows."""
    with suppress(OSError):
        kept = sorted(folder.glob("*.onnx"), key=lambda file: file.stat().st_mtime)
        for file in kept[:-_KEPT]:
            file.unlink()
