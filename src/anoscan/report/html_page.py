"""Write the HTML report of a scoring: images with reconstruction and anomaly map, by score.

The page is one file that loads nothing, made from the JSON document of ``score``. Pictures, style
and script are inside, and a Content-Security-Policy forbids everything else. File names and the
contents of a model file only ever appear as text.
"""

from __future__ import annotations

import datetime
import hashlib
import json
import os
import posixpath
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self
from urllib.parse import quote

import numpy as np

import anoscan
from anoscan.core.channels import channels_in_words
from anoscan.core.files import defused, printable, replacing
from anoscan.core.results import ImageScore
from anoscan.report import pictures
from anoscan.report.album import Album
from anoscan.report.figure import Box
from anoscan.report.templating import check_page, embedded, render, share
from anoscan.report.views import ImageViews
from anoscan.training import health

SCHEMA = "anoscan.score/1"
_FIRST = 60  # images whose pictures come before the script, so that the first screens show at once
_LISTED = 1000  # images in the list that a browser without JavaScript shows, at most
_BINS = 44


@dataclass(frozen=True)
class Shown:
    """What the page needs of one image besides its result; sizes are those of the upright image.

    `number` is that of its pictures in the album, or -1 when it has none.
    """

    number: int
    width: int
    height: int
    boxes: tuple[Box, ...]


@dataclass(frozen=True)
class Background:
    """What a report says about the model; all fields may be empty.

    `metadata` are those of the model file, and `calibration` the scores (n,) of calibration images.
    `queries` are the paths that were given to score. Without any, the page names the folder that
    all images share. `made` is the time of the run, by default now.
    """

    metadata: Mapping[str, Any]
    calibration: np.ndarray
    queries: tuple[str, ...] = ()
    made: datetime.datetime | None = None


class HtmlReport:
    """Collects images as they are scored, and then writes the page.

    Parameters
    ----------
    path : Path
        File of the page, ``.html`` or ``.htm``. An older file is replaced when the new one is
        complete.
    images : int
        About how many images will be added.
    assets : bool
        Whether pictures are kept, and may be larger, in a folder ``NAME-files`` beside the page.

    Raises
    ------
    UsageError
        When `path` has another suffix, or is a folder.
    InputError
        When nothing can be written there.
    """

    def __init__(self, path: Path, images: int, *, assets: bool = False) -> None:
        check_page(path)
        self.path = path
        self._album = Album(images, path.parent, assets_of(path) if assets else None)
        self._shown: dict[str, Shown] = {}
        self._scale = 0.0  # value of the maps with the brightest colour; the same in all of them
        self._reconstructs = True

    def add(self, image: ImageScore, seen: ImageViews) -> None:
        """Keep the pictures, the size and the regions of an image that has just been scored."""
        height, width = seen.decoded.shape
        boxes = seen.boxes(image.regions)
        self._shown[image.path] = Shown(self._album.add(seen.views), width, height, boxes)
        self._scale, self._reconstructs = seen.scale, seen.reconstructs

    def write(self, document: Mapping[str, Any], background: Background) -> None:
        """Write the page of a scoring (the JSON document ``anoscan.score/1``) and its model.

        Raises
        ------
        InputError
            When the page cannot be written.
        """
        rows, model = document["images"], printable(str(document["model"].get("name", "")))
        numbers = [s.number for row in rows if (s := self._shown.get(row["path"]))]
        folder = self._album.folder
        inline = [] if folder else numbers
        context = {
            "version": anoscan.__version__,
            "model": model,
            "run": run_facts(document, background),
            "document": document,
            "warnings": [
                printable(str(warning))
                for warning in (
                    *health.warnings_of(model, background.metadata),
                    document["threshold"]["warning"],
                    document.get("warning"),
                )
                if warning
            ],
            "data": embedded(_keyed(self._data(document), document)),
            "chart": chart(
                [row["score"] for row in rows if row["score"] is not None],
                background.calibration,
                document["threshold"]["score"],
            ),
            "colours": pictures.COLOUR_STOPS if self._scale else None,
            "scale": self._scale,
            "card": model_card(document, background.metadata),
            "health": _health(background.metadata),
            "skipped": [
                (printable(str(s["path"])), printable(str(s["reason"])))
                for s in document["skipped"]
            ],
            "listed": [
                (row["rank"], row["score"], row["p_value"], row["verdict"], printable(row["path"]))
                for row in rows[:_LISTED]
            ],
            "first": self._pictures(inline[:_FIRST]),
            "rest": self._pictures(inline[_FIRST:]),
            "images_from": "data:" if folder is None else "'self' data: file:",
        }
        with replacing(self.path) as stream:
            for chunk in render("report", context):
                stream.write(chunk.encode("utf-8"))
            stream.flush()  # a full disk shows now, while the older page still has its pictures
            self._album.finish()

    def _pictures(self, numbers: Sequence[int]) -> Iterator[tuple[int, str]]:
        for number in numbers:
            yield number, self._album.inline(number)

    def _data(self, document: Mapping[str, Any]) -> dict[str, Any]:
        """Return data for the script of the page; images are lists, to keep thousands small."""
        rows = document["images"]
        terms = list(rows[0]["terms"]) if rows else []
        folder = self._album.folder
        return {
            "threshold": document["threshold"]["score"],
            "terms": terms,
            "reconstructs": self._reconstructs,
            "assets": None if folder is None else quote(folder.name) + "/",
            "images": [self._row(row, terms) for row in rows],
            "names": _names([row["path"] for row in rows]),
        }

    def _row(self, row: Mapping[str, Any], terms: Sequence[str]) -> list[Any]:
        shown = self._shown.get(row["path"], Shown(-1, 0, 0, ()))
        boxes = [[*(round(edge, 4) for edge in box[:4]), int(box[4])] for box in shown.boxes]
        percentiles = row.get("percentiles") or {}
        return [
            row["rank"],
            printable(row["path"]),
            _short(row["score"]),
            _short(row["p_value"]),
            _short(row["q_value"]),
            int(row["verdict"] == "anomalous"),
            shown.number,
            shown.width,
            shown.height,
            [_short(row["terms"].get(term)) for term in terms],
            boxes,
            [_short(percentiles.get(term)) for term in terms],
            [printable(reason) for reason in row.get("mismatch") or ()],
            [
                (printable(near["path"]), _short(near["distance"]))
                for near in row.get("nearest") or ()
            ],
        ]

    def close(self) -> None:
        """Close the album, which removes its temporary file or folder."""
        self._album.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *failure: object) -> None:
        self.close()


def assets_of(page: Path) -> Path:
    """Return the folder beside a page for its pictures, when they are not inside the page."""
    return page.with_name(f"{page.stem}-files")


def _keyed(data: dict[str, Any], document: Mapping[str, Any]) -> dict[str, Any]:
    """Add a hash of the results to the data: a browser keeps the marks of a page under it."""
    text = json.dumps([document["model"], data], sort_keys=True)
    return data | {"key": hashlib.sha256(text.encode()).hexdigest()[:32]}


def _names(paths: Sequence[str]) -> dict[int, str | None]:
    """Return what a labels file calls images that it calls otherwise than the page, by place."""
    named = ((place, path, path_in_csv(path)) for place, path in enumerate(paths))
    return {place: name for place, path, name in named if name != printable(path)}


def path_in_csv(path: str) -> str | None:
    """Return what a labels file calls an image, or None where it cannot name it.

    A labels file is UTF-8, and its cells lose the blanks at their ends. A relative path that starts
    with a blank, or that a spreadsheet would run as a formula, starts with ``./`` instead.
    """
    try:
        path.encode("utf-8")
    except UnicodeEncodeError:
        return None
    if path != path.rstrip():
        return None
    return f"./{path}" if path != path.lstrip() or defused(path) != path else path


def _short(value: float | None) -> float | None:
    return None if value is None else float(f"{value:.6g}")


# --- the chart, the model and its health --------------------------------------------------------


@dataclass(frozen=True)
class Bar:
    """One bin of the chart, above or below the threshold.

    `left` and `width` are in percent of the chart's width, heights in percent of the tallest bar.
    `low` and `high` are scores; `scored` and `held_out` count scored and calibration images.
    """

    left: float
    width: float
    low: float
    high: float
    scored: int
    held_out: int
    scored_height: float
    held_out_height: float
    anomalous: bool


@dataclass(frozen=True)
class Chart:
    """Distribution of scores beside that of the calibration images.

    Parameters
    ----------
    low, high : float
        Scores at both ends of the chart.
    cut : bool
        Whether some scores are above `high`; they are counted in the last bin.
    threshold : float
        Place of the threshold, in percent of the chart's width.
    bars : tuple of Bar
        Bins from the lowest score to the highest.
    ticks : tuple of (float, str)
        Place in percent of the chart's width, and text, of each tick.
    """

    low: float
    high: float
    cut: bool
    threshold: float
    bars: tuple[Bar, ...]
    ticks: tuple[tuple[float, str], ...]


def chart(scores: Sequence[float], held_out: np.ndarray, threshold: float) -> Chart | None:
    """Sort scores into bins, one edge of which is the threshold; None when there are no scores.

    The chart ends at most three times as far above the threshold as the lowest score is below it.
    Higher scores are counted in the last bin. `held_out` (n,) are scores of the calibration images,
    and may be empty.
    """
    if not scores:
        return None
    values, normals = np.asarray(scores, np.float64), np.asarray(held_out, np.float64)
    low = float(min(values.min(), threshold, *normals[:1], normals.min(initial=np.inf)))
    top = float(max(values.max(), threshold, normals.max(initial=-np.inf)))
    high = min(top, threshold + 3 * max(threshold - low, 1e-9)) if top > threshold else top
    width = max((high - low) / _BINS, 1e-12)
    below = max(1, int(np.ceil((threshold - low) / width - 1e-9)))
    above = max(1, int(np.ceil((high - threshold) / width - 1e-9)))
    edges = threshold + width * np.arange(-below, above + 1)
    counts = [_counts(numbers, edges, threshold) for numbers in (values, normals)]
    shares = [count / max(1, count.sum()) for count in counts]
    tallest = max(share.max() for share in shares)
    span = edges[-1] - edges[0]
    bars = tuple(
        Bar(
            left=100 * (edges[i] - edges[0]) / span,
            width=100 * width / span,
            low=float(edges[i]),
            high=float(edges[i + 1]),
            scored=int(counts[0][i]),
            held_out=int(counts[1][i]),
            scored_height=100 * float(shares[0][i] / tallest),
            held_out_height=100 * float(shares[1][i] / tallest),
            anomalous=i >= below,
        )
        for i in range(len(edges) - 1)
    )
    return Chart(
        low=float(edges[0]),
        high=float(edges[-1]),
        cut=top > edges[-1] + 1e-9,
        threshold=100 * float((threshold - edges[0]) / span),
        bars=bars,
        ticks=_ticks(float(edges[0]), float(edges[-1])),
    )


def _counts(values: np.ndarray, edges: np.ndarray, threshold: float) -> np.ndarray:
    """Count the values in each bin.

    A bin includes its upper edge, because only a score above the threshold is anomalous.
    """
    places = np.searchsorted(edges, values, side="left") - 1
    odd = int(np.searchsorted(edges, threshold))
    places = np.where(values > threshold, np.maximum(places, odd), np.minimum(places, odd - 1))
    counted: np.ndarray = np.bincount(np.clip(places, 0, len(edges) - 2), minlength=len(edges) - 1)
    return counted


def _ticks(low: float, high: float) -> tuple[tuple[float, str], ...]:
    """Choose about five round numbers; return the place in percent, and the text, of each."""
    rough = (high - low) / 5
    unit = 10 ** np.floor(np.log10(rough))
    step = float(unit * min((1, 2, 5, 10), key=lambda factor: abs(factor * unit - rough)))
    first, last = int(np.ceil(low / step)), int(np.floor(high / step))
    return tuple(
        (100 * (i * step - low) / (high - low), f"{i * step:.6g}") for i in range(first, last + 1)
    )


def run_facts(document: Mapping[str, Any], background: Background) -> list[tuple[str, str]]:
    """Return facts about the run for the top of the page, as pairs of name and text."""
    threshold, counts = document["threshold"], document["counts"]
    version = _version(background.metadata)
    trained = f", trained with {version}" if version else ""
    rate = share(threshold["effective_rate"])
    rate += " (chosen automatically)" if threshold["chosen"] == "auto" else ""
    checks = [verdict for verdict, _, _ in _health(background.metadata)]
    worst = next((verdict for verdict in ("fail", "warn", "ok") if verdict in checks), None)
    made = background.made or datetime.datetime.now(datetime.UTC)
    normal = counts["scored"] - counts["anomalous"]
    facts = {
        "queries": ", ".join(background.queries) or _shared_folder(document),
        "scored on": made.strftime("%Y-%m-%d %H:%M UTC"),
        "model": f"{document['model'].get('name', '')}{trained}",
        "threshold": f"anomalous is a score above {threshold['score']:.4g}",
        "false-alarm rate": f"{rate} on {threshold['calibration_images']:,} calibration images",
        "images": f"{counts['anomalous']:,} anomalous, {normal:,} normal, "
        f"{counts['skipped']:,} skipped",
        "model health": worst,
    }
    return [(name, printable(fact)) for name, fact in facts.items() if fact]


def _shared_folder(document: Mapping[str, Any]) -> str | None:
    """Return the folder that all images are in, or None where there is none."""
    paths = [row["path"] for row in (*document["images"], *document["skipped"])]
    try:
        shared: str = os.path.commonpath([posixpath.dirname(path) for path in paths])
    except ValueError:  # there is no image, or some paths are absolute
        return None
    return shared


def model_card(document: Mapping[str, Any], metadata: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return facts about the model as pairs of name and text; `metadata` may have any content."""
    config, rule = _part(metadata, "config"), _part(metadata, "image_rule")
    data, model = _part(metadata, "training_data"), document["model"]
    sees = f"{rule['size']} x {rule['size']}" if "size" in rule else None
    if sees and rule.get("patch"):
        sees = f"{sees}, patches of {rule['patch']}"
    colours = channels_in_words(rule.get("channels"))
    facts = {
        "model": model.get("name"),
        "file": model.get("path"),
        "SHA-256": model.get("sha256"),
        "sees": ", ".join(filter(None, (sees, colours))),
        "architecture": config.get("architecture"),
        "objective": config.get("objective"),
        "encoder": config.get("encoder"),
        "encoder trained by": config.get("mapping"),
        "pretrained network": _pretrained(metadata),
        "latent numbers": config.get("latent_dim"),
        "normal images": data.get("trained"),
        "held out": data.get("held_out"),
        "seed": config.get("seed"),
        "trained with": _version(metadata),
        "mapping of queries": document.get("mapping"),
    }
    return [(name, printable(str(fact))) for name, fact in facts.items() if fact not in (None, "")]


def _part(metadata: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    part = metadata.get(key)
    return part if isinstance(part, dict) else {}


def _version(metadata: Mapping[str, Any]) -> str | None:
    version = metadata.get("anoscan_version")
    return None if version is None else f"anoscan {version} on {metadata.get('device', '?')}"


def _pretrained(metadata: Mapping[str, Any]) -> str | None:
    """Return which pretrained network a model has, where its weights came from, and the licence."""
    found = _part(metadata, "backbone")
    if not found:
        return None
    return f"{found.get('name')}, weights of {found.get('source')} ({found.get('licence')})"


def _health(metadata: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """Return verdict, name and message of each health check of the training, as text."""
    checks = _part(metadata, "health").get("checks")

    def said(check: Mapping[str, Any], key: str) -> str:
        return printable(str(check.get(key, "")))

    return [
        (said(check, "verdict"), said(check, "name"), said(check, "message"))
        for check in (checks if isinstance(checks, list) else [])
        if isinstance(check, dict)
    ]
