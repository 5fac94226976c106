"""The default score of a model as one graph of operations, and that graph as an ONNX file.

The graph is recorded while the code that scores images runs. So it is the score itself and not a
second form of it. Only the last steps, which `TermScale` and `p_values` do in NumPy, are written
here once more.
"""

from __future__ import annotations

import importlib.util
import logging
import math
import os
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import anoscan
from anoscan.core import registry
from anoscan.core.errors import ModelError, UsageError
from anoscan.core.runtime import exact_float32
from anoscan.core.tracing import as_graph
from anoscan.images.decode import ImageRule
from anoscan.model.model import Model
from anoscan.model.score_of_terms import Scorer
from anoscan.scoring.choices import DEFAULT_SCORE
from anoscan.scoring.terms import Evidence, Term

OPSET = 18  # of ONNX; runtimes of the year 2023 and later know it
INPUT = "image"
OUTPUTS = ("score", "p_value", "map", "reconstruction")
_NEEDED = ("onnx", "onnxscript", "onnxruntime")
_RECORDED = 2  # images that are recorded with; the graph takes any number


class Measuring(nn.Module):
    """Measures images as networks see them: their terms, anomaly maps and reconstructions.

    Parameters
    ----------
    model : Model
        Its tensors must be on the CPU.
    names : sequence of str
        The names of the terms that are measured.
    mapped : bool
        Whether the maps are measured.
    """

    def __init__(self, model: Model, names: Sequence[str], *, mapped: bool = True) -> None:
        super().__init__()
        self.parts = nn.ModuleDict(model.networks.parts())
        self._model, self._names, self._mapped = model, tuple(names), mapped

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return terms (n, k), float64, maps (n, s, s) and reconstructions (n, c, s, s)."""
        evidence = Evidence(self._model.networks, x)
        terms = [self._term(name, evidence) for name in self._names]
        measured = torch.stack(terms, 1) if terms else x.new_zeros(1)
        if not self._mapped:
            return measured, x.new_zeros(1), evidence.x_hat
        return measured, torch.cat(list(self._model.maps.parts(evidence))), evidence.x_hat

    def _term(self, name: str, evidence: Evidence) -> Tensor:
        term: Term = registry.load("terms", name)
        return term.measure(evidence, self._model.fitted[name])


class Scoring(nn.Module):
    """Scores images as they are stored, with all constants of the calibration.

    Terms that do not count in the default score are left out.
    """

    mean: Tensor
    deviation: Tensor
    weights: Tensor
    ascending: Tensor

    def __init__(self, model: Model, scorer: Scorer) -> None:
        super().__init__()
        names, scale = scorer.terms(DEFAULT_SCORE), scorer.scale(DEFAULT_SCORE)
        counted = scale.weights > 0
        self.measuring = Measuring(model, [n for n, c in zip(names, counted, strict=True) if c])
        for name in ("mean", "deviation", "weights"):
            self.register_buffer(name, torch.from_numpy(getattr(scale, name)[counted]))
        calibrated = torch.from_numpy(scorer.calibration_scores(DEFAULT_SCORE).copy())
        self.register_buffer("ascending", calibrated.sort().values)
        self.sight = _Sight(model.rule)

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return scores and p-values (n,), float64, maps and reconstructions, float32."""
        terms, anomaly_map, x_hat = self.measuring(self.sight(image))
        logs = terms.clamp_min(1e-30).log()
        weighted = (logs - self.mean) / self.deviation * self.weights
        score = weighted.logsumexp(1) - math.log(len(self.weights))
        at_least = (self.ascending >= score[:, None]).double().sum(1)
        p_value = (1 + at_least) / (len(self.ascending) + 1)
        return score, p_value, self.sight.counted(anomaly_map), self.sight.levels(x_hat)


class _Sight(nn.Module):
    """Makes of stored samples what the networks see, and the other way round.

    It does what `Canvas.part` does, in the same precision.
    """

    inside: Tensor | None

    def __init__(self, rule: ImageRule) -> None:
        super().__init__()
        self.low, self.high = rule.window or (0.0, 255.0)
        self._limited = rule.window is not None
        size = rule.size, rule.size
        roi = None if rule.roi is None else torch.from_numpy(rule.roi.part((0, 0), size, size))
        self.register_buffer("inside", roi)

    def forward(self, image: Tensor) -> Tensor:
        """Map stored samples (n, c, s, s) to [-1, 1], or [-3, 3] with a window, float32."""
        values = image.double()
        if self._limited:
            values = (values - self.low) / (self.high - self.low) * 2 - 1
            values = values.clamp(-3, 3)
        else:
            values = values / 127.5 - 1
        if self.inside is not None:
            values = torch.where(self.inside, values, 0.0)  # mid-grey
        return values.float()

    def levels(self, x: Tensor) -> Tensor:
        """Map what networks see or make (n, c, s, s) to levels of the stored samples, float32."""
        return (x + 1) * ((self.high - self.low) / 2) + self.low

    def counted(self, found: Tensor) -> Tensor:
        """Return maps (n, s, s) with 0 outside the region of interest."""
        return found if self.inside is None else torch.where(self.inside, found, 0.0)


@dataclass(frozen=True)
class Kind:
    """The samples that a graph takes: their dtype, and the levels of black and white."""

    dtype: str
    black: float
    white: float

    @classmethod
    def of(cls, rule: ImageRule) -> Kind:
        """Return uint8 for a model of 8-bit images, and float32 for one with a window."""
        if rule.window is None:
            return cls("uint8", 0.0, 255.0)
        return cls("float32", *map(float, rule.window))


def check_exportable(model: Model, name: str) -> None:
    """Refuse a model whose score is no graph of one image.

    Raises
    ------
    ModelError
        For a model of patches, and for a region of interest in images that are padded or cropped.
    """
    rule = model.rule
    if rule.patch is not None:
        raise ModelError(
            f"{name} cannot be exported: it learned from patches, and the score of a large image "
            "is made of many tiles.",
            hint="Train a model of whole images, without --patches.",
        )
    if rule.roi is not None and rule.fit != "stretch":
        raise ModelError(
            f"{name} cannot be exported: its region of interest lies elsewhere in each image, "
            f"because of --fit {rule.fit}.",
            hint="Train a model with --fit stretch, or without --roi.",
        )


def check_installed(option: str) -> None:
    """Refuse to go on without the packages of the extra ``onnx``.

    Raises
    ------
    UsageError
        When one of them is missing.
    """
    for package in _NEEDED:
        if importlib.util.find_spec(package) is None:
            raise UsageError(
                f"{option} needs the package {package}, which is not installed.",
                hint='Install it with pip install "anoscan[onnx]".',
            )


def scoring_file(model: Model, scorer: Scorer, path: Path) -> None:
    """Write the ONNX file of `Scoring`.

    Raises
    ------
    ModelError
        When a part of the model cannot be exported; the message names it.
    """
    rule = model.rule
    dtype = getattr(torch, Kind.of(rule).dtype)
    images = torch.zeros(_RECORDED, rule.channels, rule.size, rule.size, dtype=dtype)
    _write(Scoring(model, scorer), images, INPUT, OUTPUTS, path)


def measuring_file(model: Model, names: Sequence[str], path: Path) -> None:
    """Write the ONNX file of `Measuring`, with input ``x``; raise as `scoring_file` does."""
    rule = model.rule
    x = torch.zeros(_RECORDED, rule.channels, rule.size, rule.size)
    _write(Measuring(model, names), x, "x", ("terms", "map", "x_hat"), path)


def _write(graph: nn.Module, given: Tensor, name: str, outputs: Sequence[str], path: Path) -> None:
    try:
        program = _recorded(graph, given, name, outputs)
    except Exception as error:  # the exporter raises whatever an operation leads to
        measuring = graph.measuring if isinstance(graph, Scoring) else graph
        assert isinstance(measuring, Measuring)
        raise ModelError(
            f"{_culprit(measuring)} cannot be exported to ONNX: {_reason(error)}",
            hint="Score with anoscan itself.",
        ) from error
    import onnx

    found = program.model_proto
    # The exporter notes where each operation stood in the code: files of this machine.
    del found.metadata_props[:]
    for part in (
        *found.graph.node,
        *found.graph.value_info,
        *found.graph.initializer,
        *found.functions,
    ):
        del part.metadata_props[:]
        part.doc_string = ""
    for part in (*found.graph.input, *found.graph.output):
        del part.metadata_props[:]
    del found.graph.metadata_props[:]
    found.producer_name, found.producer_version = "anoscan", anoscan.__version__
    onnx.save(found, str(path))


def _recorded(graph: nn.Module, given: Tensor, name: str, outputs: Sequence[str]) -> Any:
    """Return the recorded graph as a program of torch's ONNX exporter."""
    graph.eval()
    with (
        exact_float32(),
        as_graph(),
        _untraced(),
        warnings.catch_warnings(),
        open(os.devnull, "w") as nowhere,  # noqa: PTH123 - the exporter prints as it goes
        redirect_stdout(nowhere),
    ):
        warnings.simplefilter("ignore")  # torch warns of its own internals
        graph(given)  # filters that are kept must be there before: a recorded one has no numbers
        return torch.onnx.export(
            graph,
            (given,),
            dynamo=True,
            opset_version=OPSET,
            input_names=[name],
            output_names=list(outputs),
            dynamic_shapes=({0: torch.export.Dim("n")},),
            verbose=False,
        )


@contextmanager
def _untraced() -> Iterator[None]:
    """Keep torch from logging every step of the recording, where a program takes all messages."""
    logger = logging.getLogger("torch.__trace")
    before, logger.disabled = logger.disabled, True
    try:
        yield
    finally:
        logger.disabled = before


def _culprit(graph: Measuring) -> str:
    """Return in words which part of a model cannot be recorded: a term, the maps or a network."""
    model = graph._model
    rule = model.rule
    x = torch.zeros(_RECORDED, rule.channels, rule.size, rule.size)

    def fails(names: Sequence[str], *, mapped: bool) -> bool:
        try:
            _recorded(Measuring(model, names, mapped=mapped), x, "x", ("terms", "map", "x_hat"))
        except Exception:
            return True
        return False

    if fails((), mapped=False):
        return f"the architecture {model.config.architecture} of this model"
    for name in graph._names:
        if fails((name,), mapped=False):
            return f"the term {name} of this model"
    return "the anomaly map of this model"


def _reason(error: BaseException) -> str:
    """Return the first line of the cause of an error of the exporter, as one sentence."""
    while error.__cause__ is not None:
        error = error.__cause__
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}{': ' + lines[0] if lines else ''}."
