"""Export a model: ``model.onnx``, and ``card.json`` that says how to use it."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import anoscan
from anoscan.core.errors import ModelError, UsageError
from anoscan.core.files import check_writable, replacing, temporary_folder
from anoscan.core.results import ExportReport, ModelReference, Parity, json_text, to_json
from anoscan.core.runtime import Runtime
from anoscan.export import graph, parity, real_images
from anoscan.export.graph import INPUT, Kind
from anoscan.images.decode import ImageRule
from anoscan.model import store
from anoscan.model.judge import Judge
from anoscan.model.model import Model
from anoscan.scoring.choices import DEFAULT_SCORE, ScoreRequest
from anoscan.training import health

FORMATS = ("onnx",)
FILE, CARD = "model.onnx", "card.json"
CARD_SCHEMA = "anoscan.card/1"
_HOW = {
    "stretch": "resize the image to the square, whatever its shape",
    "pad": "resize the image until its longer side fits the square, put it in the middle, and fill "
    "the rest with the median of the image, channel by channel",
    "crop": "resize the image until its shorter side fits the square, and cut out the middle",
}


def export(
    judge: Judge,
    reference: ModelReference,
    folder: Path,
    request: ScoreRequest,
    *,
    images: Sequence[str | Path] = (),
    force: bool = False,
) -> ExportReport:
    """Write the graph of a model and its card to a folder, if they pass the check of `parity`.

    Parameters
    ----------
    judge : Judge
        The model, on the CPU.
    reference : ModelReference
    folder : Path
    request : ScoreRequest
        Its false-alarm rate decides the threshold of the card.
    images : sequence of paths
        Real images to check with; see `real_images.gather`.
    force : bool
        Whether files that exist are replaced.

    Raises
    ------
    ModelError
        When a part of the model cannot be exported, the files exist, or the file gives other
        results than anoscan.
    InputError
        When there are no real images to check with.
    UsageError
        When the folder cannot be written, or the extra ``onnx`` is not installed.
    """
    graph.check_installed("export")
    model, scorer = judge.model, judge.scorer
    graph.check_exportable(model, reference.name)
    check_writable(folder, "--output", folder=True)
    target, card = folder / FILE, folder / CARD
    for path in (target, card):
        if path.exists() and not force:
            raise ModelError(
                f"{path} exists already.", hint="Choose another folder, or replace it with --force."
            )
    found = real_images.gather(model, Path(reference.path), images, judge.runtime.workers)
    levels = judge.levels(request)
    with temporary_folder(folder) as temporary:
        made = temporary / FILE
        graph.scoring_file(model, scorer, made)
        checked = parity.check(model, scorer, made, found, levels.image)
        parity.refuse(checked, reference.name)
        digest = hashlib.sha256(made.read_bytes()).hexdigest()
        document = _card(judge, reference, request, checked, digest)
        made.replace(target)
    with replacing(card) as stream:
        stream.write((json_text(to_json(document)) + "\n").encode("ascii"))
    return ExportReport(
        model=reference,
        format="onnx",
        file=str(target),
        card=str(card),
        sha256=digest,
        bytes=target.stat().st_size,
        opset=graph.OPSET,
        threshold=judge.threshold(request),
        parity=checked,
        skipped=found.skipped,
    )


def read(model: str | Path, workers: int | None = None) -> tuple[Judge, ModelReference]:
    """Read a model by name or path onto the CPU, to `export` it; raise as `Model.read` does."""
    path, runtime = store.resolve(model), Runtime.resolve("cpu", "float32", workers)
    found, digest = Model.read(path, runtime)
    reference = ModelReference(name=path.stem, path=str(path), sha256=digest)
    return Judge(found, runtime), reference


def check_format(name: str) -> None:
    """Refuse a format that there is not.

    Raises
    ------
    UsageError
        When it is none of `FORMATS`.
    """
    if name not in FORMATS:
        raise UsageError(f"--format must be one of {', '.join(FORMATS)}. Got {name!r}.")


def _card(
    judge: Judge,
    reference: ModelReference,
    request: ScoreRequest,
    checked: Parity,
    digest: str,
) -> dict[str, Any]:
    """Return the card, as JSON values and results; it names no path."""
    model, config = judge.model, judge.model.config
    return {
        "schema": CARD_SCHEMA,
        "anoscan_version": anoscan.__version__,
        "model": {
            "name": reference.name,
            "sha256": reference.sha256,
            "architecture": config.architecture,
            "backbone": config.backbone,
        },
        "file": {"name": FILE, "sha256": digest, "format": "onnx", "opset": graph.OPSET},
        "input": _input(model.rule),
        "outputs": _outputs(model.rule),
        "preprocessing": _preprocessing(model.rule),
        "threshold": judge.threshold(request),
        "map_level": judge.levels(request).region,
        "calibration": _calibration(judge),
        "health": health.of_model(reference.name, model.metadata),
        "parity": checked,
    }


def _input(rule: ImageRule) -> dict[str, Any]:
    kind = Kind.of(rule)
    return {
        "name": INPUT,
        "dtype": kind.dtype,
        "shape": ["n", rule.channels, rule.size, rule.size],
        "axes": "image, channel, row, column",
        "channels": "grey" if rule.channels == 1 else "red, green, blue",
        "black": kind.black,
        "white": kind.white,
    }


def _outputs(rule: ImageRule) -> dict[str, Any]:
    side = rule.size
    return {
        "score": {
            "dtype": "float64",
            "shape": ["n"],
            "meaning": "anomaly score; higher is more anomalous",
        },
        "p_value": {
            "dtype": "float64",
            "shape": ["n"],
            "meaning": "share of normal images that are at least as anomalous",
        },
        "map": {
            "dtype": "float32",
            "shape": ["n", side, side],
            "meaning": "anomaly of each place, in standard deviations of normal images",
        },
        "reconstruction": {
            "dtype": "float32",
            "shape": ["n", rule.channels, side, side],
            "meaning": "normal image that is most like the input, in levels of the input",
        },
    }


def _preprocessing(rule: ImageRule) -> dict[str, Any]:
    grey = "0.299 red + 0.587 green + 0.114 blue" if rule.channels == 1 else None
    inside = "(image - black) / (white - black) * 2 - 1"
    return {
        "before": {
            "orientation": "turn the image upright, as its EXIF orientation says",
            "transparency": "lay transparent pixels over black",
            "grey": grey,
            "size": rule.size,
            "fit": rule.fit,
            "how": _HOW[rule.fit],
            "filter": "bilinear with antialiasing: Image.Resampling.BILINEAR of Pillow",
            "region": None
            if rule.roi is None
            else "make pixels outside the region of interest mid-grey before the image is resized",
        },
        "in_the_graph": {
            "levels": inside if rule.window is None else f"{inside}, limited to [-3, 3]",
            "region": None if rule.roi is None else "pixels and map outside it do not count",
        },
    }


def _calibration(judge: Judge) -> dict[str, Any]:
    scorer = judge.scorer
    scale = scorer.scale(DEFAULT_SCORE)
    return {
        "images": len(scorer.calibration_scores(DEFAULT_SCORE)),
        "score": DEFAULT_SCORE,
        "p_value": "(1 + number of calibration scores >= score) / (images + 1)",
        "terms": [
            {"name": name, "mean": float(m), "deviation": float(d), "weight": float(w)}
            for name, m, d, w in zip(
                scorer.terms(DEFAULT_SCORE), scale.mean, scale.deviation, scale.weights, strict=True
            )
        ],
    }
