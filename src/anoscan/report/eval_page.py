"""Write the HTML page of an evaluation: its figures and tables in one file that loads nothing."""

from __future__ import annotations

import base64
import datetime
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scipy.special import betaincinv

import anoscan
from anoscan.core.files import printable, replacing
from anoscan.core.results import ClassReport, ComparedModel, EvalReport, PixelReport
from anoscan.report import plots
from anoscan.report.templating import number, render, share

_ALT = {
    "roc": "ROC: share of anomalies that are found, by the share of normal images called anomalous",
    "precision-recall": "Precision by recall",
    "scores": "Histograms of the scores of normal and of anomalous images, with the threshold",
    "confusion": "Verdicts by label, at the threshold",
    "classes": "AUROC of each class",
}

Pairs = list[tuple[str, str]]


@dataclass(frozen=True)
class Table:
    """A table of text; numbers stand in the columns after the first."""

    title: str
    head: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    note: str = ""


def write(
    report: EvalReport, path: Path, labels: str, made: datetime.datetime | None = None
) -> None:
    """Write the page of an evaluation; it needs Matplotlib (see `plots.check`).

    Parameters
    ----------
    report : EvalReport
    path : Path
    labels : str
        The CSV or the folder that gave the labels, as the user named it.
    made : datetime, optional
        Time of the evaluation; by default now.

    Raises
    ------
    InputError
        When the page cannot be written.
    """
    made = made or datetime.datetime.now(datetime.UTC)
    figures = [
        (_ALT[name], f"data:image/svg+xml;base64,{base64.b64encode(drawn).decode()}")
        for name, drawn in plots.drawn(report)
    ]
    context = {
        "version": anoscan.__version__,
        "model": printable(report.model.name),
        "auroc": number(report.auroc),
        "interval": _interval(report.auroc_ci95),
        "undefined": printable(report.undefined or ""),
        "warnings": [printable(text) for text in _warnings(report)],
        "run": [(name, printable(fact)) for name, fact in _facts(report, labels, made)],
        "figures": figures,
        "tables": list(_tables(report)),
        "skipped": [(printable(s.path), printable(s.reason)) for s in report.images.skipped],
    }
    with replacing(path) as stream:
        for chunk in render("evaluation", context, scripted=False):
            stream.write(chunk.encode("utf-8"))


def _warnings(report: EvalReport) -> Iterator[str]:
    if report.threshold_uses_labels:
        yield (
            "Labels had a part in the threshold. If they were of these images, recall and "
            "false-alarm rate at the threshold are no measure of new images."
        )
    yield from filter(None, (report.threshold.warning, report.warning))


def _facts(report: EvalReport, labels: str, made: datetime.datetime) -> Pairs:
    images, threshold = report.images, report.threshold
    rate = share(threshold.effective_rate)
    rate += " (chosen automatically)" if threshold.chosen == "auto" else ""
    return [
        ("labels", labels),
        ("evaluated on", made.strftime("%Y-%m-%d %H:%M UTC")),
        ("model", report.model.name),
        ("SHA-256", report.model.sha256[:16]),
        ("threshold", f"anomalous is a score above {threshold.score:.4g}"),
        ("false-alarm rate", f"{rate} on {threshold.calibration_images:,} calibration images"),
        (
            "images",
            f"{images.normal:,} normal, {images.anomalous:,} anomalous, "
            f"{len(images.skipped):,} skipped",
        ),
        ("without a match", f"{images.missing:,} labels, {images.unlabelled:,} images"),
        ("latents by", report.mapping),
    ]


def _tables(report: EvalReport) -> Iterator[Table]:
    yield _detection(report)
    yield _at_threshold(report)
    yield _confusion(report)
    if report.classes:
        yield _classes(report.classes)
    if report.comparison:
        yield _comparison(report.comparison)
    if report.pixel:
        yield _pixels(report.pixel)
    rows = sorted(report.terms.items(), key=lambda term: -(term[1]["auroc"] or 0))
    yield Table(
        "Terms alone",
        ("term", "AUROC"),
        tuple((name, number(found["auroc"])) for name, found in rows),
        "Not all of them count in the score. Labels did not choose those that do.",
    )


def _detection(report: EvalReport) -> Table:
    own = (
        printable(report.model.name),
        number(report.auroc),
        _interval(report.auroc_ci95),
        number(report.average_precision),
    )
    baselines = [
        (f"baseline: {name.replace('_', ' ')}", number(found["auroc"]), "-", "-")
        for name, found in report.baselines.items()
    ]
    head = ("detector", "AUROC", "95 % interval", "average precision")
    note = "Baselines were fitted on the same training images."
    return Table("Detection", head, (own, *baselines), note)


def _at_threshold(report: EvalReport) -> Table:
    at, hit = report.at_threshold, report.at_threshold.confusion
    shares = (
        ("recall: anomalies that are found", at.recall, hit.true_positive, report.images.anomalous),
        (
            "false alarms: normal images called anomalous",
            at.false_alarm_rate,
            hit.false_positive,
            report.images.normal,
        ),
        (
            "precision: anomalies among the images called anomalous",
            at.precision,
            hit.true_positive,
            hit.true_positive + hit.false_positive,
        ),
    )
    rows = [
        (name, share(value), _interval(proportion_interval(count, n), share))
        for name, value, count, n in shares
    ]
    return Table(
        "At the model's threshold",
        ("figure", "value", "95 % interval"),
        (*rows, ("F1", number(at.f1), "-")),
        f"The threshold promises a false-alarm rate of {share(report.threshold.effective_rate)}. "
        "Intervals of shares are those of Clopper and Pearson.",
    )


def _confusion(report: EvalReport) -> Table:
    hit = report.at_threshold.confusion
    return Table(
        "Labels and verdicts",
        ("label", "called normal", "called anomalous"),
        (
            ("normal", f"{hit.true_negative:,}", f"{hit.false_positive:,}"),
            ("anomalous", f"{hit.false_negative:,}", f"{hit.true_positive:,}"),
        ),
    )


def _classes(classes: Sequence[ClassReport]) -> Table:
    return Table(
        "Classes",
        ("class", "normal", "anomalous", "AUROC", "found", "95 % interval", "false alarms"),
        tuple(
            (
                "-" if row.name is None else printable(row.name),
                f"{row.normal:,}",
                f"{row.anomalous:,}",
                number(row.auroc),
                share(row.recall),
                _interval(_of_share(row.recall, row.anomalous), share),
                share(row.false_alarm_rate),
            )
            for row in classes
        ),
        "A class without normal images of its own is compared with all normal images.",
    )


def _comparison(rows: Sequence[ComparedModel]) -> Table:
    return Table(
        "Models",
        ("model", "images", "AUROC", "95 % interval", "difference", "95 % interval"),
        tuple(
            (
                printable(row.model.name),
                f"{row.images:,}",
                number(row.auroc),
                _interval(row.auroc_ci95),
                "-" if row.difference is None or place == 0 else f"{row.difference:+.4f}",
                "-" if place == 0 else _interval(row.difference_ci95),
            )
            for place, row in enumerate(rows)
        ),
        "Differences are to the first model, on the images that all models could read.",
    )


def _pixels(pixel: PixelReport) -> Table:
    dice = pixel.best_dice.dice if pixel.best_dice else None
    rows = (
        ("AUROC of pixels", number(pixel.auroc)),
        ("average precision of pixels", number(pixel.average_precision)),
        (f"AUPRO, up to {pixel.aupro_limit:g}", number(pixel.aupro)),
        ("best Dice (uses labels: these masks chose its threshold)", number(dice)),
    )
    return Table("Pixels", ("figure", "value"), rows, printable(pixel.undefined or ""))


def proportion_interval(count: int, n: int) -> tuple[float, float] | None:
    """Return the 95 % interval of Clopper and Pearson of a share, or None where n is 0.

    >>> low, high = proportion_interval(9, 10)
    >>> round(low, 3), round(high, 3)
    (0.555, 0.997)
    """
    if not n:
        return None
    low = float(betaincinv(count, n - count + 1, 0.025)) if count else 0.0
    high = float(betaincinv(count + 1, n - count, 0.975)) if count < n else 1.0
    return low, high


def _of_share(value: float | None, n: int) -> tuple[float, float] | None:
    return None if value is None else proportion_interval(round(value * n), n)


def _interval(ends: tuple[float, float] | None, text: Any = number) -> str:
    return "-" if ends is None else f"{text(ends[0])} to {text(ends[1])}"
