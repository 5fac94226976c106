"""The page of an evaluation: what is in it, that it loads nothing, and how it fits a phone."""

from __future__ import annotations

import datetime
from pathlib import Path
from typing import Any

import pytest

from anoscan.cli.app import main
from anoscan.core.results import Skipped
from anoscan.report import eval_page
from anoscan.report.eval_page import proportion_interval
from tests.report.test_html_page import Page
from tests.report.test_html_page_browser import browser
from tests.report.test_plots import HOSTILE, named, report, row

__all__ = ["browser"]

WHEN = datetime.datetime(2026, 1, 2, 3, 4, tzinfo=datetime.UTC)


def written(folder: Path, **other: Any) -> Path:
    baselines = {"mean_image": {"auroc": 0.61}, "pca": {"auroc": None}}
    terms = {"density": {"auroc": 0.8}, "local": {"auroc": None}}
    made = report(**{"baselines": baselines, "terms": terms, **other})
    eval_page.write(made, folder / "page.html", "labels.csv", WHEN)
    return folder / "page.html"


def test_the_page_has_all_figures_and_all_tables_and_points_nowhere(tmp_path: Path) -> None:
    text = written(tmp_path, models=2).read_text(encoding="utf-8")
    page = Page(text)
    images = [a["src"] or "" for tag, a in page.elements if tag == "img"]
    assert len(images) == 5
    assert all(source.startswith("data:image/svg+xml;base64,") for source in images)
    titles = [words for tag, words in page.texts if tag == "h2"]
    assert titles == [
        "Detection", "At the model's threshold", "Labels and verdicts", "Classes", "Models",
        "Terms alone",
    ]  # fmt: skip
    assert "2026-01-02 03:04 UTC" in text
    assert "baseline: mean image" in text
    assert "0.61" in text
    assert "https://" not in text
    assert "http://" not in text
    assert not page.scripts


def test_the_same_evaluation_gives_the_same_page(tmp_path: Path) -> None:
    first = written(tmp_path, only=False, classes=None).read_bytes()
    assert written(tmp_path, only=False, classes=None).read_bytes() == first


def test_names_and_reasons_are_text(tmp_path: Path) -> None:
    skipped = (Skipped(path="<i>a</i>.png", reason="<script>alert(1)</script>"),)
    images = report().images
    path = written(
        tmp_path,
        model=named(HOSTILE),
        classes=(row(HOSTILE, 0.5),),
        curves=None,
        images=type(images)(normal=300, anomalous=100, skipped=skipped, unlabelled=0, missing=0),
    )
    text = path.read_text(encoding="utf-8")
    assert "<b>" not in text
    assert "<script>" not in text
    assert "&lt;i&gt;a&lt;/i&gt;.png" in text


def test_what_labels_do_not_define_is_said(tmp_path: Path) -> None:
    path = written(tmp_path, only=False, classes=None, undefined="there is no anomaly")
    text = path.read_text(encoding="utf-8")
    assert "AUROC is not defined" in text
    assert "there is no anomaly" in text
    assert text.count("<img") == 1  # the verdicts


def test_a_share_has_the_interval_of_clopper_and_pearson() -> None:
    assert proportion_interval(0, 0) is None
    low, high = proportion_interval(0, 20) or (1, 0)
    assert (low, round(high, 4)) == (0, 0.1684)
    low, high = proportion_interval(20, 20) or (1, 0)
    assert (round(low, 4), high) == (0.8316, 1)


@pytest.mark.parametrize("name", ["page.png", "folder.html"])
def test_a_page_that_cannot_be_is_refused_before_the_model_is_loaded(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "folder.html").mkdir()
    arguments = ["eval", "--labels", "no.csv", "--model", "no", "--report", str(tmp_path / name)]
    monkeypatch.setattr("sys.argv", ["anoscan", *arguments])
    with pytest.raises(SystemExit) as stop:
        main()
    assert stop.value.code == 2
    assert "report" in capsys.readouterr().err


def test_on_a_phone_only_tables_scroll_sideways(browser: Any, tmp_path: Path) -> None:
    path = written(tmp_path)
    context = browser.new_context(viewport={"width": 375, "height": 800})
    page = context.new_page()
    complaints: list[str] = []
    page.on("console", lambda message: complaints.append(message.text))
    page.goto(path.as_uri())
    assert page.evaluate("document.documentElement.scrollWidth") == 375
    assert page.evaluate("[...document.images].every((e) => e.complete && e.naturalWidth > 100)")
    context.close()
    assert complaints == []
