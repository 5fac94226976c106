"""Saved results become a report: the document is checked, and the images are looked at again."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from anoscan import images, modelfile, pictures, store
from anoscan.config import SMALLEST_SIZE
from anoscan.detector import Detector
from anoscan.errors import AnoscanError, InputError, ModelError
from anoscan.html_report import SCHEMA, Background, HtmlReport
from anoscan.images import ImageFile, ImageRule
from anoscan.results import ImageScore, Region
from anoscan.scores import DEFAULT_SCORE, ENCODER, MAPPINGS, SCORES, Inversion, scales_of
from anoscan.seen import Seen
from anoscan.training import OnProgress

Warn = Callable[[str], None]
_LARGEST = 1 << 30  # bytes of JSON
_NUMBER = (int, float)
_MAYBE = (int, float, type(None))
_TEXT = (str, type(None))
# What the page needs of a document; whatever else there is stays as it is.
_DOCUMENT: dict[str, tuple[type, ...]] = {
    "model": (dict,),
    "threshold": (dict,),
    "counts": (dict,),
    "images": (list,),
    "skipped": (list,),
}
_THRESHOLD: dict[str, tuple[type, ...]] = {
    "score": _NUMBER,
    "effective_rate": _MAYBE,
    "calibration_images": _NUMBER,
    "warning": _TEXT,
}
_COUNTS = dict.fromkeys(("scored", "anomalous", "skipped"), _NUMBER)
_IMAGE: dict[str, tuple[type, ...]] = {
    "rank": _MAYBE,
    "path": (str,),
    "score": _MAYBE,
    "p_value": _MAYBE,
    "q_value": _MAYBE,
    "verdict": (str,),
    "terms": (dict,),
    "regions": (list,),
}
_OPTIONAL: dict[str, tuple[type, ...]] = {
    "percentiles": (dict, type(None)),
    "mismatch": (list, type(None)),
    "nearest": (list, type(None)),
}
_REGION = dict.fromkeys(("x", "y", "width", "height"), (int,)) | {"score": _MAYBE}
_SEARCH = {"steps": (int,), "discrimination_loss": (str,), "seed": (int,)}
_SKIPPED = {"path": (str,), "reason": (str,)}


def read(source: str) -> dict[str, Any]:
    """Document of ``score --json`` from a file, or from stdin for ``-``; its images by rank.

    Raises
    ------
    InputError
        When it cannot be read or is another document.
    """
    name = "stdin" if source == "-" else source
    try:
        text = sys.stdin.read() if source == "-" else _text(Path(source))
        document = json.loads(text, parse_constant=lambda word: None)
        _checked(document)
    except OSError as error:
        raise InputError(f"{name} cannot be read: {error.strerror or error}.") from None
    except (ValueError, RecursionError) as error:
        raise InputError(
            f"{name} is not what anoscan score --json writes: {error}.",
            hint="Make it with anoscan score ... --json > results.json.",
        ) from None
    document["images"].sort(key=lambda row: (row["rank"] is None, row["rank"]))
    return dict(document)


def _text(file: Path) -> str:
    if file.stat().st_size > _LARGEST:
        raise ValueError("it is larger than 1 GiB")
    return file.read_text(encoding="utf-8")


def _checked(document: Any) -> None:
    if not isinstance(document, dict) or document.get("schema") != SCHEMA:
        raise ValueError(f"its schema is not {SCHEMA}")
    _has(document, _DOCUMENT, "the document")
    _has(document["threshold"], _THRESHOLD, "threshold")
    _has(document["counts"], _COUNTS, "counts")
    if isinstance(document.get("search"), dict):
        _has(document["search"], _SEARCH, "search")
    for index, row in enumerate(document["images"]):
        _has(row, _IMAGE, f"images[{index}]")
        _has(dict.fromkeys(_OPTIONAL) | row, _OPTIONAL, f"images[{index}]")
        for region in row["regions"]:
            _has(region, _REGION, f"a region of images[{index}]")
        for reason in row.get("mismatch") or ():
            _has({"mismatch": reason}, {"mismatch": (str,)}, f"images[{index}]")
        for near in row.get("nearest") or ():
            _has(near, {"path": (str,), "distance": _MAYBE}, f"a neighbour of images[{index}]")
        for kind in ("terms", "percentiles"):
            terms = row.get(kind) or {}
            if not all(isinstance(value, _MAYBE) for value in dict(terms).values()):
                raise ValueError(f"{kind} of images[{index}] are not numbers")
    for index, row in enumerate(document["skipped"]):
        _has(row, _SKIPPED, f"skipped[{index}]")


def _has(value: Any, fields: Mapping[str, tuple[type, ...]], where: str) -> None:
    for field, types in fields.items():
        if not isinstance(value, dict) or field not in value:
            raise ValueError(f"{where} has no {field!r}")
        if not isinstance(value[field], types) or isinstance(value[field], bool):
            raise ValueError(f"{field!r} of {where} is of the wrong kind")


def detector(
    document: Mapping[str, Any],
    model: str | None,
    device: str,
    workers: int | None,
    warn: Warn,
) -> Detector | None:
    """Model that gave the results, where it is still there; `model` names another place of it.

    Raises
    ------
    ModelError
        When `model` is given and cannot be used.
    """
    said, rows = document["model"], document["images"]
    scales = scales_of(rows[0]["terms"] if rows else ())
    if model is not None:
        found = Detector.load(model, device=device, workers=workers, scales=scales)
        if found.reference.sha256 != said.get("sha256"):
            warn("the model is not the one that gave these scores: pictures may not fit them.")
        return found
    state = "is not there"
    for place in (said.get("path"), said.get("name")):
        try:
            path = store.resolve(str(place))
            if place and modelfile.digest(path) == said.get("sha256"):
                return Detector.load(path, device=device, workers=workers, scales=scales)
            state = "was changed since (calibrated, or trained again)"
        except (AnoscanError, OSError, ValueError):
            continue
    warn(
        f"the model {str(said.get('name'))!r} that gave these scores {state}: the report has "
        "queries only. Name it with --model."
    )
    return None


def draw(
    document: Mapping[str, Any],
    model: Detector | None,
    page: HtmlReport,
    batch_size: int,
    on_progress: OnProgress,
    warn: Warn,
) -> int:
    """Give the page its pictures: with the model all of them, without it queries.

    Returns
    -------
    int
        Images that cannot be read.

    Raises
    ------
    InputError
        When none can.
    """
    rows = {row["path"]: row for row in document["images"]}
    files = [images.named(path, Path(path), path) for path in rows]
    if model is None:
        for file in files:
            _add_query(file, page, _regions(rows[file.path]))
    else:
        _remake(document, rows, files, model, page, batch_size, on_progress)
    missing = len(files) - page.shown
    where = "Run anoscan report in the folder in which they were scored."
    if files and not page.shown:
        raise InputError(
            f"none of the {len(files):,} images can be read where the results say.", hint=where
        )
    if missing:
        warn(f"{missing:,} of {len(files):,} images cannot be read where the results say. {where}")
    return missing


def _remake(
    document: Mapping[str, Any],
    rows: Mapping[str, Mapping[str, Any]],
    files: list[ImageFile],
    model: Detector,
    page: HtmlReport,
    batch_size: int,
    on_progress: OnProgress,
) -> None:
    def add(image: ImageScore, seen: Seen) -> None:
        page.add(dataclasses.replace(image, regions=_regions(rows[image.path])), seen)

    score = document.get("score")
    outcomes = model.stream(
        files,
        score=score if score in SCORES else DEFAULT_SCORE,
        mapping=_inversion(document),
        batch_size=batch_size,
        on_progress=on_progress,
        on_image=add,
    )
    for _ in outcomes:
        pass


def _inversion(document: Mapping[str, Any]) -> Inversion:
    """How the results got their latents; a search without its settings is one of the defaults."""
    mapping, search = document.get("mapping"), document.get("search")
    if mapping not in MAPPINGS or mapping == ENCODER.mapping:
        return ENCODER
    if not isinstance(search, dict):
        return Inversion(mapping)
    return Inversion(mapping, search["discrimination_loss"], search["steps"], search["seed"])


def _regions(row: Mapping[str, Any]) -> tuple[Region, ...]:
    return tuple(Region(**{key: region[key] for key in _REGION}) for region in row["regions"])


def _add_query(file: ImageFile, page: HtmlReport, regions: tuple[Region, ...]) -> None:
    whole = ImageRule(size=SMALLEST_SIZE, channels=3, window=None)
    try:
        try:
            decoded = images.decode(file, dataclasses.replace(whole, patch=SMALLEST_SIZE))
        except InputError:  # narrower than the smallest patch
            decoded = images.decode(file, whole)
    except InputError:
        return
    canvas = decoded.canvas
    if canvas.window is not None:
        ends = float(canvas.samples.min()), float(canvas.samples.max())
        canvas = dataclasses.replace(canvas, window=(ends[0], max(ends[1], ends[0] + 1e-6)))

    def query(side: int) -> Image.Image:
        return pictures.picture(canvas.reduced(2 * side), side)

    page.add_query(query, decoded, regions)


def background(document: Mapping[str, Any], model: Detector | None) -> Background:
    """What the report says of the model, as far as it is there."""
    if model is None:
        return Background({}, np.empty(0))
    score = document.get("score")
    try:
        held_out = model.calibration_scores(score if score in SCORES else DEFAULT_SCORE)
    except ModelError:
        held_out = np.empty(0)
    return Background(model.model.metadata, held_out)
