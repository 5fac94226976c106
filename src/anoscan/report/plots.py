"""Draw evaluations and histories as pictures, with Matplotlib (the extra ``plots``)."""

from __future__ import annotations

import datetime
import io
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from anoscan.core.errors import UsageError
from anoscan.core.files import printable, replacing
from anoscan.core.results import (
    AtThreshold,
    ClassReport,
    ComparedModel,
    Curves,
    EvalReport,
    Histogram,
    PastRun,
    TrendReport,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


Drawn = EvalReport | ComparedModel

# These are Okabe and Ito's colours, which colour-blind people can distinguish too.
NORMAL, ANOMALOUS, GUIDE = "#0072B2", "#D55E00", "#999999"
_CYCLE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
_DASHES = ("-", "--", "-.", ":")
_MOST_CLASSES = 40
_STYLE: Any = {
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlelocation": "left",
    "axes.titlesize": 11,
    "font.size": 10,
    "legend.frameon": False,
    "savefig.dpi": 150,
    "svg.fonttype": "none",  # text stays text: it can be searched, and read aloud
    "svg.hashsalt": "anoscan",  # equal figures give equal files
    "text.parse_math": False,  # a name with dollar signs is no formula
}


def check(option: str = "--plots") -> None:
    """Refuse to go on without Matplotlib, which an option needs.

    Raises
    ------
    UsageError
        When Matplotlib is not installed.
    """
    if find_spec("matplotlib") is None:
        raise UsageError(
            f"{option}: Matplotlib is not installed.",
            hint="Install it: python -m pip install 'anoscan[plots]'",
        )


def write(report: EvalReport, folder: Path) -> list[Path]:
    """Draw an evaluation: curves of all compared models, and further figures of the first one.

    Returns a PNG and an SVG of each figure: ``roc``, ``precision-recall``, ``scores`` (histograms
    by label), ``confusion`` and, where there are classes, ``classes``. A figure that the labels do
    not define is left out. The folder is created, and files of the same names are replaced.

    Raises
    ------
    InputError
        When a file cannot be written.
    """
    written = []
    with _styled():
        for name, figure in _figures(report):
            for suffix in ("png", "svg"):
                file = folder / f"{name}.{suffix}"
                metadata = {"Date": None} if suffix == "svg" else {"Software": None}
                with replacing(file) as stream:
                    figure.savefig(stream, format=suffix, metadata=metadata)
                written.append(file)
    return written


def drawn(report: EvalReport) -> Iterator[tuple[str, bytes]]:
    """Yield the name and the SVG of each figure that `write` draws."""
    with _styled():
        for name, figure in _figures(report):
            stream = io.BytesIO()
            figure.savefig(stream, format="svg", metadata={"Date": None})
            yield name, stream.getvalue()


@contextmanager
def _styled() -> Iterator[None]:
    from matplotlib import rc_context

    with rc_context(_STYLE), warnings.catch_warnings():
        # The PNG shows a box for a letter that the font lacks. The SVG is right all the same.
        warnings.filterwarnings("ignore", "Glyph .* missing from", UserWarning)
        yield


def _figures(report: EvalReport) -> Iterator[tuple[str, Figure]]:
    models: list[Drawn] = [row for row in report.comparison or (report,) if row.curves]
    if report.curves is not None:
        yield "roc", _roc(models)
        images = report.images
        share = images.anomalous / (images.normal + images.anomalous)
        yield "precision-recall", _precision_recall(models, share)
        yield "scores", _scores(report.curves.scores, report.at_threshold.score)
    yield "confusion", _confusion(report.at_threshold)
    if any(row.auroc is not None for row in report.classes or ()):
        yield "classes", _classes(report.classes or ())


def _axes(
    title: str, x: str, y: str, size: tuple[float, float] = (5.2, 5.4)
) -> tuple[Figure, Axes]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=size, layout="constrained")
    axes = figure.subplots()
    axes.set(title=title, xlabel=x, ylabel=y)
    return figure, axes


def _size(models: Sequence[Drawn]) -> tuple[float, float]:
    """Return the size, in inches, of a square plot with a legend of all models below it."""
    return 5.2, 5.0 + 0.22 * len(models)


def _unit(axes: Axes) -> None:
    axes.set(xlim=(-0.01, 1.01), ylim=(-0.01, 1.01), aspect="equal")
    axes.grid(color="#E5E5E5", linewidth=0.6)
    axes.set_axisbelow(True)


def _lines(models: Sequence[Drawn]) -> Iterator[tuple[dict[str, Any], str, Curves, Drawn]]:
    """Yield line style, short name, curves and result of each model that has curves."""
    for number, row in enumerate(models):
        style = {
            "color": _CYCLE[number % len(_CYCLE)],
            "linestyle": _DASHES[number // len(_CYCLE) % len(_DASHES)],
            "linewidth": 1.8,
        }
        if row.curves is not None:
            yield style, _short(printable(row.model.name)), row.curves, row


def _mark(axes: Axes, style: dict[str, Any], x: float | None, y: float | None) -> None:
    if x is not None and y is not None:
        axes.plot(x, y, "o", color=style["color"], markersize=6)


def _roc(models: Sequence[Drawn]) -> Figure:
    figure, axes = _axes(
        "ROC", "false alarms (share of normal images)", "found (share of anomalous images)"
    )
    axes.plot([0, 1], [0, 1], color=GUIDE, linewidth=0.8, linestyle=(0, (4, 3)))
    for style, name, curves, row in _lines(models):
        label = f"{name}: AUROC {row.auroc:.3f}"
        axes.plot(curves.roc.false_alarm_rate, curves.roc.recall, **style, label=label)
        _mark(axes, style, row.at_threshold.false_alarm_rate, row.at_threshold.recall)
    axes.plot([], [], "o", color=GUIDE, label="at the model's threshold")
    _unit(axes)
    figure.legend(loc="outside lower left")
    return figure


def _precision_recall(models: Sequence[Drawn], share: float) -> Figure:
    figure, axes = _axes("Precision by recall", "recall", "precision", _size(models))
    axes.axhline(share, color=GUIDE, linewidth=0.8, linestyle=(0, (4, 3)))
    for style, name, curves, row in _lines(models):
        label = f"{name}: average precision {row.average_precision:.3f}"
        curve = curves.precision_recall
        axes.plot(curve.recall, curve.precision, **style, label=label)
        _mark(axes, style, row.at_threshold.recall, row.at_threshold.precision)
    axes.plot([], [], "o", color=GUIDE, label="at the model's threshold")
    _unit(axes)
    figure.legend(loc="outside lower left")
    return figure


def _scores(scores: Histogram, threshold: float) -> Figure:
    figure, axes = _axes("Scores by label", "score", "share of the label's images", (6.4, 4.2))
    for name, counts, colour, hatch in (
        ("normal", scores.normal, NORMAL, None),
        ("anomalous", scores.anomalous, ANOMALOUS, "///"),
    ):
        shares = [count / sum(counts) for count in counts]
        axes.stairs(shares, scores.edges, fill=True, color=colour, alpha=0.25, hatch=hatch)
        axes.stairs(shares, scores.edges, color=colour, linewidth=1.6, label=name)
    axes.axvline(threshold, color="black", linewidth=1.0, linestyle="--", label="threshold")
    axes.set_ylim(bottom=0)
    axes.legend()
    return figure


def _confusion(at: AtThreshold) -> Figure:
    title = f"Verdicts at the threshold {at.score:.3g}"
    figure, axes = _axes(title, "verdict", "label", (4.4, 3.8))
    hit = at.confusion
    counts = [
        [hit.true_negative, hit.false_positive],
        [hit.false_negative, hit.true_positive],
    ]
    # Shades are shares of each label's images, so that a rare label is not pale.
    shares = [[count / max(sum(row), 1) for count in row] for row in counts]
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    for y, row in enumerate(counts):
        for x, count in enumerate(row):
            share = shares[y][x]
            text = f"{count:,}\n{100 * share:.1f} %" if sum(row) else "-"
            colour = "white" if share > 0.6 else "black"
            axes.text(x, y, text, ha="center", va="center", color=colour, fontsize=12)
    names = ["normal", "anomalous"]
    axes.set_xticks([0, 1], names)
    axes.set_yticks([0, 1], names, rotation=90, va="center")
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    return figure


def _classes(classes: Sequence[ClassReport]) -> Figure:
    known = [row for row in classes if row.auroc is not None]
    rows = sorted(known, key=lambda row: row.auroc or 0.0)[:_MOST_CLASSES]
    title = "AUROC by class"
    if len(known) > len(rows):
        title += f": the lowest {len(rows)} of {len(known)}"
    height = 1.4 + 0.28 * max(len(rows), 3)
    figure, axes = _axes(title, "AUROC", "", (6.0, height))
    names = [_short("-" if row.name is None else printable(row.name)) for row in rows]
    places = range(len(rows))
    bars = axes.barh(places, [row.auroc or 0.0 for row in rows], color=NORMAL, height=0.65)
    axes.bar_label(bars, [f"{row.auroc:.3f}" for row in rows], padding=3, fontsize=9)
    axes.set_yticks(places, names)
    axes.axvline(0.5, color=GUIDE, linewidth=0.8, linestyle=(0, (4, 3)))
    axes.set_xlim(0, 1.12)
    axes.set_xticks([0, 0.25, 0.5, 0.75, 1])
    axes.invert_yaxis()
    return figure


def _short(name: str) -> str:
    return name if len(name) <= 30 else f"{name[:29]}…"


def write_trend(report: TrendReport, file: Path) -> None:
    """Draw the shares of alarms and the scores of all runs with images, by time, as PNG.

    Raises
    ------
    InputError
        When the file cannot be written.
    """
    with _styled(), replacing(file) as stream:
        _trend(report).savefig(stream, format="png", metadata={"Software": None})


def _trend(report: TrendReport) -> Figure:
    import matplotlib.dates
    from matplotlib.figure import Figure

    dates: Any = matplotlib.dates
    figure = Figure(figsize=(7.5, 5.6), layout="constrained")
    alarms, scores = figure.subplots(2, sharex=True)
    runs = [run for run in report.runs if run.scored]
    times = [datetime.datetime.fromisoformat(run.time) for run in runs]
    shares = [100 * run.anomalous / run.scored for run in runs]
    promised = [100 * run.false_alarm_rate for run in runs]
    alarms.plot(times, shares, "o-", color=ANOMALOUS, markersize=4, label="anomalous")
    alarms.step(times, promised, "--", where="mid", color="black", linewidth=1.0, label="promised")
    alarms.set(title="Share of anomalous images", ylabel="% of the images", ylim=(0, None))
    for values, style, label in (
        ([run.score_q95 for run in runs], "v-", "95 % quantile"),
        ([run.score_median for run in runs], "o-", "median"),
    ):
        colour = NORMAL if label == "median" else GUIDE
        scores.plot(times, _numbers(values), style, color=colour, markersize=4, label=label)
    levels = [run.threshold for run in runs]
    scores.step(times, levels, "--", where="mid", color="black", linewidth=1.0, label="threshold")
    scores.set(title="Scores", ylabel="score")
    for axes in (alarms, scores):
        for when in _changes(runs, times):
            axes.axvline(when, color=GUIDE, linewidth=0.8, linestyle=":")
        axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5))
    locator = dates.AutoDateLocator(tz=datetime.UTC)
    scores.xaxis.set_major_locator(locator)
    scores.xaxis.set_major_formatter(dates.ConciseDateFormatter(locator, tz=datetime.UTC))
    # On the right, Matplotlib writes the date that the ticks leave out.
    scores.set_xlabel("time (UTC); dotted lines: another model or threshold", loc="left")
    return figure


def _numbers(values: Sequence[float | None]) -> list[float]:
    return [float("nan") if value is None else value for value in values]


def _changes(
    runs: Sequence[PastRun], times: Sequence[datetime.datetime]
) -> Iterator[datetime.datetime]:
    """Yield the middle of the times between which the model or its threshold changed."""
    for place in range(1, len(runs)):
        before, after = runs[place - 1], runs[place]
        if (before.sha256, before.threshold) != (after.sha256, after.threshold):
            yield times[place - 1] + (times[place] - times[place - 1]) / 2
