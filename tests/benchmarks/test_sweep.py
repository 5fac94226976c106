"""Cells of a benchmark are kept, found again, and put into tables."""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path

import pytest

from anoscan.core import registry
from anoscan.core.config import TrainConfig
from benchmarks import cells, lineage, run, table
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
            cell = {"data": "digits", "cls": "3", "method": method, "settings": []}
            cell |= {"auroc": auroc, "cpu_seconds": 2.0, "auroc_by_term": terms}
            path.write_text(json.dumps(cell), encoding="utf-8")
    lines = table.table("digits").splitlines()
    assert lines[2] == "| **anoscan** | 0.950 | 0.950 | 0.071 | 2 | 2 |"
    assert lines[3].startswith("| pca-64 | 0.800")
    assert "| density | 0.850 | 0.850 |" in table.terms("digits")


def test_every_row_of_the_lineage_changes_one_choice_of_the_registry() -> None:
    usual = TrainConfig(architecture="dcgan")  # what auto means at 28 and 32 pixels
    rows = lineage.rows()
    assert rows.pop("default") == {}
    paper = rows.pop("f-anogan")
    assert rows.pop("f-anogan-8") == paper | {"width": 8}
    for name in ("resnet", "progressive"):
        assert rows.pop(f"{name}-8") == rows[name] | {"width": 8}
    for name, settings in rows.items():
        config = TrainConfig.from_dict({"architecture": "dcgan"} | settings)
        changed = [o for o in lineage.FAMILIES if getattr(config, o) != getattr(usual, o)]
        assert [getattr(config, option) for option in changed] == [name]
    choices = [name for family in lineage.FAMILIES.values() for name in registry.names(family)]
    assert len(rows) == len(choices) - len(lineage.FAMILIES)


QUICK = {"images_shown": 64, "rotation_images_shown": 0, "encoder_images_shown": 32, "width": 4}


def test_a_row_of_the_lineage_leaves_its_figures_and_a_sheet_of_samples(
    results: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lineage, "rows", lambda: {"default": QUICK})
    cell = Cell("lineage/digits", "3", 0, "default")
    found = lineage.compute_row(cell, "command")
    assert {"paper", "anogan", "pixel", "latent"} <= set(found["auroc_by_term"])
    assert cell.path.is_relative_to(results / "lineage" / "digits")
    assert lineage.sheet_path(cell).exists()
    lines = table.lineage("digits").splitlines()
    assert lines[0].startswith("| digits | 3 | mean | sd over seeds | paper | anogan | pixel |")
    assert lines[0].count("|") == lines[2].count("|")
    assert lines[2].startswith("| default |")
    assert "*" not in lines[2]
    del found["auroc_by_term"][table.OF_TODAY]
    cell.path.write_text(json.dumps(found), encoding="utf-8")
    figure = f"{found['auroc']:.3f}"
    starred = table.lineage("digits").splitlines()[2]
    assert starred.startswith(f"| default | {figure}\\* | {figure}\\* | - |")


def test_the_order_of_encoders_has_a_spread_where_there_are_seeds(
    results: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for seed, (paper, error) in enumerate([(0.9, 0.5), (0.8, 0.3), (0.7, 0.4)]):
        for row in ("default", "izi", "vae"):
            path = results / "lineage" / "order" / "digits" / row / f"3-seed{seed}.json"
            path.parent.mkdir(parents=True, exist_ok=True)
            found = {"auroc_by_score": {"paper": paper}, "health_values": {"reconstruction": error}}
            cell = {"data": "lineage/order/digits", "cls": "3", "seed": seed, "method": row}
            if row != "vae" or not seed:
                path.write_text(json.dumps(cell | found | {"settings": []}), encoding="utf-8")

    lines = table.order("digits/3").splitlines()

    assert lines[0] == "| mapping | encoder | `paper` digits/3 | error digits/3 | seeds |"
    assert lines[2] == "| `izi_f` | `ae` | 0.800 ± 0.100 | 0.400 ± 0.100 | 3 |"
    assert lines[3] == "| `izi_f` | `vae` | 0.900 | 0.500 | 1 |"
    assert lines[5] == "| `ziz` | `ae` | - | - | 0 |"


def test_rows_are_compared_with_the_default_of_the_same_seed(results: Path) -> None:
    found = {"default": [0.90, 0.80, 0.70], "hinge": [0.92, 0.83, 0.74], "bce": [0.9]}
    for row, values in found.items():
        for seed, auroc in enumerate(values):
            path = results / "lineage" / "digits" / row / f"3-seed{seed}.json"
            path.parent.mkdir(parents=True, exist_ok=True)
            terms = {} if (row, seed) == ("hinge", 2) else {table.OF_TODAY: 0.5}  # an older score
            cell = {"data": "lineage/digits", "cls": "3", "seed": seed, "method": row}
            cell |= {"auroc": auroc, "auroc_by_term": terms}
            path.write_text(json.dumps(cell), encoding="utf-8")

    lines = table.seeds("digits/3").splitlines()

    assert lines[0] == "| row | digits/3 | to the default | seeds |"
    assert lines[2:] == [
        "| default | 0.800 ± 0.100 | - | 3 |",
        "| hinge | 0.875 ± 0.064 | +0.025 ± 0.007 | 2 |",
    ]


def test_rows_with_the_default_gan_leave_no_sheet_of_their_own() -> None:
    shared = {
        name for name, settings in lineage.rows().items() if not lineage.has_own_gan(settings)
    }
    assert shared == {"vae", "izi", "ziz"}
    assert set(lineage.ENCODERS) == shared | {"default"}


def test_searches_are_compared_with_the_encoder_and_timed(
    results: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    short = {name: dataclasses.replace(how, steps=3) for name, how in lineage.SEARCHES.items()}
    for name, value in {"SEARCHES": short, "IMAGES": 20, "ALONE": 1, "STEPS": (0, 2, 3)}.items():
        monkeypatch.setattr(lineage, name, value)
    monkeypatch.setattr(lineage, "SETTINGS", QUICK)
    found = lineage.compute_search(Cell("lineage/search", "digits-3", 0, "dcgan"), "command")
    assert list(found["mappings"]) == ["encoder", *short]
    for name in short:
        assert len(found["mappings"][name]["loss"]) == 3
    assert all(seconds > 0 for seconds in found["seconds_an_image"].values())
    text = table.search("search")
    assert "| digits-3 | search, fool |" in text
    assert "one by one / encoder" in text
