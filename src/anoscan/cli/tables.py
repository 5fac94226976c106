"""Show results as tables and sentences.

Plain strings hold paths and commands. They are never broken into lines, so that users can copy
them. `Text` is wrapped between words.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from statistics import fmean
from typing import Any

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from anoscan.cli import model_tables, review_table, thresholds
from anoscan.cli.cells import NameCell
from anoscan.cli.cells import cell as _cell
from anoscan.cli.cells import table as _table
from anoscan.core import results
from anoscan.core.channels import channels_in_words
from anoscan.core.config import NO_BACKBONE
from anoscan.core.files import printable

SUSPECTS_SHOWN = 20
_VERDICT_STYLES = {"ok": "green", "warn": "yellow", "fail": "red"}


def render(report: Any) -> Iterator[RenderableType]:
    """Yield the parts of a report of any command, in the order of printing."""
    return _RENDERERS[type(report)](report)


def _train(report: results.TrainReport) -> Iterator[RenderableType]:
    model, images = report.model, report.images
    yield f"model: {printable(model.name)} ({printable(model.path)})"
    parts = f" in {images.patches:,} patches" if images.patches is not None else ""
    yield Text(
        f"images: {images.trained:,} trained on{parts}, {images.held_out:,} held out, "
        f"{_dropped(images)}{len(images.skipped):,} skipped; seen at {model.size}x{model.size}, "
        f"{channels_in_words(model.channels)}"
    )
    game = f"{model.architecture}, {model.objective}, {model.mapping}"
    features = "" if model.backbone == NO_BACKBONE else f"; features of {model.backbone}"
    yield Text(
        f"training: {game if report.images_shown['gan'] else 'no GAN'}{features}; "
        f"{report.seconds['total']:.0f} s on {report.device} ({report.precision})"
        + f", {report.seconds.get('folds', 0):.0f} s of them for calibration in folds"
        * ("folds" in report.seconds)
    )
    if report.tracking is not None:
        yield f"losses and pictures of the training: {printable(report.tracking)}"
    yield from _health(report.health)
    if report.self_test is not None:
        yield from _self_test(report.self_test)


def _health(found: results.HealthReport) -> Iterator[RenderableType]:
    yield Text.assemble("health: ", _verdict(found.verdict))
    yield _checks(found.checks)


def _self_test(test: results.SelfTest) -> Iterator[RenderableType]:
    if test.cells:
        side = printable(f"{test.side}x{test.side}")
        yield Text(
            f"self-test, without labels: AUROC on synthetic defects in {test.normals:,} held-out "
            f"normals, by size at {side}; where: of pixels"
        )
        yield _seen(test.cells)
    own, others = "anoscan", [name for name in test.whole_auroc if name != "anoscan"]
    beside = ", ".join(f"{_detector(name)} {test.whole_auroc[name]:.2f}" for name in others)
    yield Text(f"AUROC on normals bent as a whole: {test.whole_auroc[own]:.2f} ({beside})")
    for finding in test.findings:
        yield Text(printable(finding))


def _seen(cells: Sequence[results.SelfTestCell]) -> Table:
    """Return a table of AUROC by kind and size, then the means over kinds of all detectors."""
    sizes = sorted({cell.size for cell in cells})
    columns = [*(f"{size} px" for size in sizes), "where"]
    table = _table("defect", *columns, right=columns)

    def row(label: str, detector: str, chosen: Sequence[results.SelfTestCell], style: str) -> None:
        found = [[c.auroc[detector] for c in chosen if c.size == size] for size in sizes]
        found.append([c.pixel_auroc[detector] for c in chosen])
        figures = [f"{fmean(values):.2f}" if values else "-" for values in found]
        table.add_row(_cell(label), *figures, style=style)

    for kind in dict.fromkeys(cell.kind for cell in cells):
        row(kind, "anoscan", [cell for cell in cells if cell.kind == kind], "")
    row("all kinds", "anoscan", cells, "bold")
    for name in cells[0].auroc:
        if name != "anoscan":
            row(f"all, by {_detector(name)}", name, cells, "")
    return table


def _detector(name: str) -> str:
    return {"pca": "PCA", "mean_image": "mean image"}.get(name, printable(name))


def _verdict(verdict: results.Health) -> tuple[str, str]:
    return verdict, _VERDICT_STYLES[verdict]


def _checks(checks: Sequence[results.HealthCheck]) -> Table:
    table = _table()
    for check in checks:
        table.add_row(Text(*_verdict(check.verdict)), _cell(check.name), _cell(check.message))
    return table


def _score(report: results.ScoreReport) -> Iterator[RenderableType]:
    unlike = any(image.mismatch for image in report.images)
    placed = any(image.regions for image in report.images)
    extra = [*(["where"] * placed), *(["mismatch"] * unlike)]
    table = _table("rank", "score", "p-value", "verdict", *extra, "image", right=("rank", "score"))
    for column in table.columns[: 4 + placed]:
        column.no_wrap = True
    for image in report.images:
        # A reason begins with a word and a colon, such as "size:". --json has the whole reason.
        words = ", ".join(reason.partition(":")[0] for reason in image.mismatch or ())
        table.add_row(
            str(image.rank),
            f"{image.score:.3f}",
            f"{image.p_value:.4f}",
            Text(image.verdict, "red" if image.verdict == "anomalous" else "green"),
            *([Text(_where(image.regions))] * placed),
            *([Text(words, "yellow")] * unlike),
            NameCell(image.path),
        )
        for neighbour in image.nearest or ():
            like = NameCell(f"like {neighbour.path} ({neighbour.distance:.2f})", "dim")
            table.add_row("", "", "", "", *[""] * len(extra), like)
    yield table
    if placed:
        hottest = any(region.below_level for image in report.images for region in image.regions)
        yield Text(
            "where: the middle of the worst region, as x,y in pixels of the file"
            + "; ~ is the hottest place of an image that has none above the level of normal images"
            * hottest
        )
    if unlike:
        yield Text(_of_mismatches([image for image in report.images if image.mismatch]))
    counts, threshold = report.counts, report.threshold
    hidden = counts["scored"] - len(report.images)
    yield Text(
        f"{counts['scored']:,} scored{f' ({hidden:,} not listed: see --top)' if hidden else ''}, "
        f"{counts['anomalous']:,} anomalous, {counts['skipped']:,} skipped; anomalous is a score "
        f"above {thresholds.described(threshold)}"
    )
    if threshold.at_other_rates:
        yield Text(thresholds.at_other_rates(threshold.at_other_rates))


def _of_mismatches(images: Sequence[results.ImageScore]) -> str:
    """Explain the column of mismatches; a defect with a place is not doubted for having one."""
    parts = ["mismatch: as a whole unlike every normal image in this; --json has the reasons."]
    if any(image.verdict == "normal" for image in images):
        parts.append("The model knows no such image, so a normal verdict on it says little.")
    if any(image.verdict == "anomalous" and not image.located for image in images):
        parts.append("Where no region stands out, it may be why the image is anomalous.")
    return " ".join(parts)


def _where(regions: Sequence[results.Region]) -> str:
    """Return the middle of the worst region, with a mark where it is below the level."""
    if not regions:
        return ""
    worst = regions[0]
    mark = "~" if worst.below_level else ""
    return f"{mark}{worst.x + worst.width // 2},{worst.y + worst.height // 2}"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f} %"


def _eval(report: results.EvalReport) -> Iterator[RenderableType]:
    images, at = report.images, report.at_threshold
    yield Text(
        f"{images.normal:,} normal and {images.anomalous:,} anomalous images; "
        f"{len(images.skipped):,} skipped; labels without an image: {images.missing:,}, "
        f"images without a label: {images.unlabelled:,}"
    )
    table = _table("detector", "AUROC", "95 % interval", "average precision")
    table.add_row(
        "anoscan",
        _number(report.auroc),
        _interval(report.auroc_ci95),
        _number(report.average_precision),
    )
    for name, figures in report.baselines.items():
        table.add_row(f"baseline: {name.replace('_', ' ')}", _number(figures["auroc"]), "", "")
    yield table
    if report.undefined:
        yield Text(f"undefined: {printable(report.undefined)}")
    yield Text(
        f"at the threshold {at.score:.3f}, for {thresholds.rate(report.threshold)}, which was set "
        f"{_how_set(report)}: "
        f"{_percent(at.recall)} of the anomalous images are found, {_percent(at.false_alarm_rate)} "
        f"of the normal ones are false alarms (precision {_number(at.precision)}, "
        f"F1 {_number(at.f1)})"
    )
    if report.pixel is not None:
        yield from _pixels(report.pixel)
    if report.classes:
        yield _classes(report.classes)
    if report.comparison:
        yield from _comparison(report.comparison)


def _pixels(pixel: results.PixelReport) -> Iterator[RenderableType]:
    table = _table("pixels", "AUROC", "average precision", "AUPRO", "best Dice")
    table.add_row(
        f"{pixel.images:,} images, {pixel.regions:,} regions",
        _number(pixel.auroc),
        _number(pixel.average_precision),
        _number(pixel.aupro),
        _number(pixel.best_dice.dice if pixel.best_dice else None),
    )
    yield table
    if pixel.best_dice:
        yield Text("best Dice uses labels: its threshold was chosen with these very masks")
    if pixel.undefined:
        yield Text(f"undefined: {printable(pixel.undefined)}")
    if pixel.without_mask:
        yield Text(f"{pixel.without_mask:,} anomalous images have no mask and were left out here")


def _classes(classes: Sequence[results.ClassReport]) -> Table:
    pixels = any(row.pixel for row in classes)
    more = ("pixel AUROC", "AUPRO") if pixels else ()
    counts = ("normal", "anomalous")
    table = _table("class", *counts, "AUROC", "found", "false alarms", *more, right=counts)
    for row in classes:
        figures = (row.pixel.auroc, row.pixel.aupro) if row.pixel else (None, None)
        table.add_row(
            _cell("-" if row.name is None else row.name),
            f"{row.normal:,}",
            f"{row.anomalous:,}",
            _number(row.auroc),
            _percent(row.recall),
            _percent(row.false_alarm_rate),
            *(_number(figure) for figure in figures[: len(more)]),
        )
    return table


def _comparison(rows: Sequence[results.ComparedModel]) -> Iterator[RenderableType]:
    pixels = any(row.pixel for row in rows)
    more = ("AUPRO",) if pixels else ()
    table = _table("model", "AUROC", "95 % interval", "difference", "95 % interval", *more)
    for number, row in enumerate(rows):
        table.add_row(
            _cell(row.model.name),
            _number(row.auroc),
            _interval(row.auroc_ci95),
            "" if number == 0 else _signed(row.difference),
            "" if number == 0 else _interval(row.difference_ci95, _signed),
            *(_number(row.pixel.aupro if row.pixel else None) for _ in more),
        )
    yield table
    yield Text(
        f"differences to {printable(rows[0].model.name)} on the {rows[0].images:,} images that "
        "all models could read (paired bootstrap)"
    )


def _signed(value: float | None) -> str:
    return "-" if value is None else f"{value:+.4f}"


def _interval(
    ends: tuple[float, float] | None, number: Callable[[float | None], str] = _number
) -> str:
    return "-" if ends is None else f"{number(ends[0])} to {number(ends[1])}"


def _how_set(report: results.EvalReport) -> str:
    if not report.threshold_uses_labels:
        return "without labels"
    return "with labels (uses labels: what follows is no measure if they were of these images)"


def _calibrate(report: results.CalibrateReport) -> Iterator[RenderableType]:
    yield f"model: {printable(report.model.name)} ({printable(report.model.path)})"
    if report.images is not None:
        yield Text(f"scales and threshold from {report.images:,} new normal images")
    if report.review is not None:
        yield from review_table.lines(report.review)
    decision = report.decision
    if decision is not None and decision.uses_labels and decision.labelled is not None:
        yield Text(
            f"uses labels: {decision.set_by} {decision.wanted:g} on "
            f"{decision.labelled['anomalous']:,} anomalies and {decision.labelled['normal']:,} "
            f"normal images; {_percent(decision.recall)} of these very anomalies are found"
        )
    yield Text(f"anomalous is a score above {thresholds.described(report.threshold)}")


def _dropped(images: results.TrainImages) -> str:
    return f"{images.dropped:,} dropped as suspects, " if images.dropped else ""


def _suspects(report: results.SuspectsReport) -> Iterator[RenderableType]:
    table = _table("rank", "score", "image", right=("rank", "score"))
    for image in report.images[:SUSPECTS_SHOWN]:
        table.add_row(str(image.rank), f"{image.score:.3f}", NameCell(image.path))
    yield table
    n, shown = len(report.images), min(len(report.images), SUSPECTS_SHOWN)
    yield Text(
        f"the {shown:,} most suspect of {n:,} images (--json has all); that an image is odd among "
        "the others does not make it an anomaly: look at them"
    )


def _drift(report: results.DriftReport) -> Iterator[RenderableType]:
    table = _table("", "distance", "adjusted p", "median then", "median now", "")
    for check in report.checks:
        table.add_row(
            check.name,
            f"{check.statistic:.3f}",
            f"{check.adjusted_p_value:.2g}",
            f"{check.calibration_median:.3g}",
            f"{check.batch_median:.3g}",
            Text("drifted", "red") if check.drifted else Text("fits", "green"),
        )
    yield table
    counts = report.counts
    yield Text(
        f"{counts['compared']:,} images compared with {report.calibration_images:,} of the "
        f"calibration; {counts['mismatch']:,} mismatch, {counts['skipped']:,} skipped; "
        f"{_percent(report.anomalous_share)} are anomalous at a false-alarm rate of "
        f"{thresholds.percent(report.false_alarm_rate)}"
    )
    yield Text(report.advice, "green" if report.fits else "red")


def _retrain(report: results.RetrainReport) -> Iterator[RenderableType]:
    yield from _train(report.train)
    yield Text(f"on {report.held_out:,} held-out normals of the new folder:")
    table = _table("model", "alarms", "promised", "median score", "at its calibration", "")
    for label, row in (("old", report.old), ("new", report.new)):
        table.add_row(
            f"{label}, {row.model.sha256[:8]}",
            _percent(row.anomalous_share),
            thresholds.percent(row.false_alarm_rate),
            f"{row.score_median:.3f}",
            f"{row.calibration_median:.3f}",
            Text("fits", "green") if row.fits else Text("drifted", "red"),
        )
    yield table
    yield Text(
        "Scores of two models have no common unit. The new model was calibrated on these images, "
        "so its alarms are what was set."
    )
    if report.labelled:
        named = zip(("old", "new"), report.labelled, strict=True)
        yield from _comparison(
            [replace(row, model=replace(row.model, name=name)) for name, row in named]
        )


def _demo(report: results.DemoReport) -> Iterator[RenderableType]:
    yield Text("1. train: scanned digits 1 to 9 are normal", "bold")
    yield from _train(report.train)
    yield ""
    yield Text("2. score: other scans of 1 to 9, and of 0, which the model never saw", "bold")
    yield from _score(report.score)
    yield ""
    yield Text("3. eval: do the scores agree with the labels?", "bold")
    yield from _eval(report.eval)
    yield ""
    folder = printable(report.output)
    yield f"pictures: {folder}/sheet.png has the most and the least anomalous scans,"
    yield f"          {folder}/residuals has all"
    quoted, model_file = shlex.quote(folder), shlex.quote(printable(report.train.model.path))
    yield "next, on the demo's images and on your own:"
    yield f"  anoscan score {quoted}/queries --model {model_file}"
    yield "  anoscan train YOUR_NORMAL_IMAGES"


def _sample(report: results.SampleReport) -> Iterator[RenderableType]:
    yield f"{report.n} generated images: {printable(report.grid)}"
    yield f"interpolations between random latents: {printable(report.interpolation)}"
    if report.between is not None:
        yield f"from one image to the other: {printable(report.between)}"
    if report.turing is not None:
        turing = report.turing
        yield (
            f"{turing.real} real and {turing.generated} generated images: {printable(turing.sheet)}"
        )
        yield f"which is which: {printable(turing.key)}"


def _doctor(report: results.DoctorReport) -> Iterator[RenderableType]:
    topics = {"machine": report.machine, "versions": report.versions, "store": report.store}
    if report.images is not None:
        topics["images"] = report.images
    yield _facts(topics)
    yield Text.assemble("verdict: ", _verdict(report.verdict))
    yield _checks(report.checks)


def model(document: Mapping[str, Any]) -> Iterator[RenderableType]:
    """Yield the parts that show a model's metadata, which may be malformed."""
    rest, told = dict(document), []
    for topic, tell in (("health", _known_health), ("self_test", _known_test)):
        # A malformed topic, or one of another version, is shown like any other fact.
        with suppress(KeyError, TypeError, ValueError, AttributeError, ArithmeticError):
            told += list(tell(rest[topic]))
            del rest[topic]
    plain = {key: value for key, value in rest.items() if not isinstance(value, dict)}
    topics = {key: value for key, value in rest.items() if isinstance(value, dict)}
    yield _facts({"": plain} | topics)
    yield from told


def _known_health(values: Mapping[str, Any]) -> Iterator[RenderableType]:
    checks = tuple(results.HealthCheck(**check) for check in values["checks"])
    yield from _health(results.HealthReport(verdict=values["verdict"], checks=checks))


def _known_test(values: Mapping[str, Any]) -> Iterator[RenderableType]:
    cells = tuple(results.SelfTestCell(**cell) for cell in values["cells"])
    known = dict(values) | {"cells": cells, "findings": tuple(values["findings"])}
    yield from _self_test(results.SelfTest(**known))


def _facts(topics: Mapping[str, Mapping[str, Any]]) -> Table:
    table = _table()
    for topic, facts in topics.items():
        for name, value in facts.items():
            label = f"{topic} {name}".strip().replace("_", " ")
            lines = value if isinstance(value, list) and value else [value]
            if all(isinstance(line, str) for line in lines):
                lines = [", ".join(lines)]
            for line in lines:
                table.add_row(_cell(label), _cell(_plain(line)))
    return table


def _plain(value: Any) -> str:
    if isinstance(value, dict):
        if "message" in value:
            return f"{value.get('name')}: {value['message']}"
        if set(value) == {"bits", "height", "width"}:
            return f"a mask of {value['width']}x{value['height']}"
        return ", ".join(f"{key}: {_part(item)}" for key, item in value.items()) or "none"
    if isinstance(value, list):
        return ", ".join(map(_part, value)) or "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.6g}"
    return "none" if value is None else str(value)


def _part(value: Any) -> str:
    return str(value) if isinstance(value, dict | list) else _plain(value)


_RENDERERS: dict[type, Callable[[Any], Iterator[RenderableType]]] = {
    results.TrainReport: _train,
    results.ScoreReport: _score,
    results.EvalReport: _eval,
    results.DemoReport: _demo,
    results.CalibrateReport: _calibrate,
    results.DriftReport: _drift,
    results.RetrainReport: _retrain,
    results.SuspectsReport: _suspects,
    results.SampleReport: _sample,
    results.ModelsReport: model_tables.models,
    results.HistoryReport: model_tables.history,
    results.DoctorReport: _doctor,
}
