from __future__ import annotations

import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from anoscan.core.errors import UsageError
from anoscan.core.results import (
    ClassReport,
    ComparedModel,
    EvalImages,
    EvalReport,
    ModelReference,
    Threshold,
)
from anoscan.evaluation import metrics
from anoscan.report import plots

HOSTILE = "$\\frac{1$ 字 <b>&\x1b\n" + "x" * 60
THRESHOLD = Threshold(
    score=2.0,
    false_alarm_rate=0.02,
    chosen="given",
    effective_rate=0.02,
    calibration_images=99,
    uncertainty=(0.002, 0.055),
    warning=None,
)
NAMES = ("roc", "precision-recall", "scores", "confusion", "classes")


def measured(shift: float, seed: int, only: bool | None = None) -> dict[str, Any]:
    generator = np.random.default_rng(seed)
    anomalous = np.arange(400) % 4 == 0 if only is None else np.full(400, only)
    scores = generator.normal(size=400) + shift * anomalous
    found = metrics.detection(scores, anomalous)
    return {
        "auroc": found.auroc,
        "auroc_ci95": found.auroc_ci95,
        "average_precision": found.average_precision,
        "at_threshold": metrics.at_threshold(scores, anomalous, 2.0),
        "curves": metrics.curves(scores, anomalous),
    }


def named(name: str) -> ModelReference:
    return ModelReference(name=name, path="p", sha256="s")


def row(name: str | None, auroc: float | None) -> ClassReport:
    return ClassReport(
        name=name, normal=0, anomalous=10, against="all normals", auroc=auroc,
        average_precision=0.5, false_alarm_rate=None, recall=0.5, pixel=None,
    )  # fmt: skip


def report(models: int = 1, only: bool | None = None, **other: Any) -> EvalReport:
    shown = [measured(2.0 - 0.6 * number, number, only) for number in range(models)]
    compared = [
        ComparedModel(
            model=named(f"model {number}"),
            images=400,
            difference=0.0,
            difference_ci95=(0.0, 0.0),
            pixel=None,
            **values,
        )
        for number, values in enumerate(shown)
    ]
    return EvalReport(
        **{
            "model": named("bolts"),
            "images": EvalImages(normal=300, anomalous=100, skipped=(), unlabelled=0, missing=0),
            "undefined": None,
            "threshold": THRESHOLD,
            "baselines": {},
            "terms": {},
            "classes": (row("hole", 0.93), row("scratch", 0.71), row(None, 0.4), row("good", None)),
            "comparison": tuple(compared) if models > 1 else None,
            **shown[0],
            **other,
        }
    )


def texts(file: Path) -> str:
    return " ".join(ElementTree.parse(file).getroot().itertext())


def test_every_figure_is_a_png_and_an_svg_whose_text_is_text(tmp_path: Path) -> None:
    shown = report()
    written = plots.write(shown, tmp_path / "new")
    expected = {f"{name}.{suffix}" for name in NAMES for suffix in ("png", "svg")}
    assert {file.name for file in written} == expected
    for name in NAMES:
        with Image.open(tmp_path / "new" / f"{name}.png") as picture:
            assert min(picture.size) > 300
            assert np.asarray(picture.convert("L")).std() > 10
    assert f"AUROC {shown.auroc:.3f}" in texts(tmp_path / "new/roc.svg")
    assert f"{shown.average_precision:.3f}" in texts(tmp_path / "new/precision-recall.svg")
    at = shown.at_threshold.confusion
    counts = texts(tmp_path / "new/confusion.svg")
    for count in (at.true_positive, at.false_positive, at.false_negative, at.true_negative):
        assert str(count) in counts.split()
    classes = texts(tmp_path / "new/classes.svg")
    assert classes.index("scratch") < classes.index("hole")
    assert "good" not in classes


def test_several_models_are_drawn_in_one_figure(tmp_path: Path) -> None:
    plots.write(report(9), tmp_path)
    shown = texts(tmp_path / "roc.svg")
    assert all(f"model {number}: AUROC" in shown for number in range(9))


def test_names_are_data_and_long_ones_leave_room_for_the_figure(tmp_path: Path) -> None:
    hostile = report(model=named(HOSTILE), classes=tuple(row(HOSTILE + str(i), 0.5) for i in "ab"))
    plots.write(hostile, tmp_path)
    for name in ("roc", "classes"):
        shown = texts(tmp_path / f"{name}.svg")
        assert "$\\frac{1$ 字 <b>&\\x1b" in shown
        assert "x" * 30 not in shown


def test_what_labels_do_not_define_is_left_out(tmp_path: Path) -> None:
    written = plots.write(report(only=False, classes=(row("good", None),)), tmp_path)
    assert {file.stem for file in written} == {"confusion"}


def test_the_same_evaluation_gives_the_same_files(tmp_path: Path) -> None:
    for one, other in zip(
        plots.write(report(2), tmp_path / "a"), plots.write(report(2), tmp_path / "b"), strict=True
    ):
        assert one.read_bytes() == other.read_bytes(), one.name


def test_only_the_lowest_of_many_classes_are_drawn_and_it_says_so(tmp_path: Path) -> None:
    many = tuple(row(f"class {i:03}", i / 100) for i in range(100))
    plots.write(report(classes=many), tmp_path)
    shown = texts(tmp_path / "classes.svg")
    assert "the lowest 40 of 100" in shown
    assert "class 039" in shown
    assert "class 040" not in shown


def test_without_matplotlib_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(UsageError, match="Matplotlib") as caught:
        plots.check()
    assert "anoscan[plots]" in (caught.value.hint or "")
