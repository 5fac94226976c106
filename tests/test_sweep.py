"""Cells of a benchmark are kept, found again, and put into tables."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from benchmarks import cells, run, table
from benchmarks.cells import Cell


@pytest.fixture
def results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for module in (cells, table):
        monkeypatch.setattr(module, "RESULTS", tmp_path)
    return tmp_path


def test_a_cell_is_measured_once_and_says_what_made_it(
    results: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    command = "--data digits --classes 3 --methods pca-64 --seeds 1"
    first = run.compute(Cell("digits", "3", 0, "pca-64"), command)
    assert first["auroc"] > 0.9
    assert first["command"] == command
    assert first["commit"]
    kept = json.loads(Cell("digits", "3", 0, "pca-64").path.read_text(encoding="utf-8"))
    assert kept == json.loads(json.dumps(first))
    monkeypatch.setattr(sys, "argv", ["run", *command.split()])
    monkeypatch.setattr(run, "compute", None)  # measuring again would call it
    run.main()
    assert json.loads(capsys.readouterr().out) == [kept]


def test_other_settings_are_other_cells(results: Path) -> None:
    plain = Cell("digits", "3", 0, "anoscan")
    wide = Cell("digits", "3", 0, "anoscan", (("width", 64),))
    assert plain.path != wide.path
    assert plain.path.parent.name == "anoscan"


def test_tables_show_means_over_seeds_and_order_methods(results: Path) -> None:
    for method, values in {"anoscan": [0.9, 1.0], "pca-64": [0.8, 0.8]}.items():
        for seed, auroc in enumerate(values):
            path = Cell("digits", "3", seed, method).path
            path.parent.mkdir(parents=True, exist_ok=True)
            terms = {"density": auroc - 0.1}
            cell = {"cls": "3", "auroc": auroc, "cpu_seconds": 2.0, "auroc_by_term": terms}
            path.write_text(json.dumps(cell), encoding="utf-8")
    lines = table.table("digits").splitlines()
    assert lines[2] == "| **anoscan** | 0.950 | 0.950 | 0.071 | 2 | 2 |"
    assert lines[3].startswith("| pca-64 | 0.800")
    assert "| density | 0.850 | 0.850 |" in table.terms("digits")
