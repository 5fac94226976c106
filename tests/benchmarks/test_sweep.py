"""Cells of a benchmark are kept, found again, and put into tables."""

from __future__ import annotations

import dataclasses
import json
import re
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from anoscan.core import registry
from anoscan.core.config import TrainConfig
from benchmarks import cells, family, lineage, one_class, run, table
from benchmarks.cells import Cell

with_results = pytest.mark.skipif(
    not cells.RESULTS.exists(), reason="a source package has no results"
)


@pytest.fixture
def results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(cells, "RESULTS", tmp_path)
    return tmp_path


def _keep(data: str, method: str, seed: int, **found: Any) -> None:
    cells.keep(Cell(data, "3", seed, method), {"cpu_seconds": 2.0} | found, "command")


def test_a_cell_is_measured_once_and_says_what_made_it(
    results: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    command = "--data digits --classes 3 --methods pca-64 --seeds 1"
    first = run.compute(Cell("digits", "3", 0, "pca-64"), command)
    assert first["auroc"] > 0.9
    assert first["command"] == command
    assert first["commit"]
    kept = json.loads((results / "digits" / "pca-64.jsonl").read_text(encoding="utf-8"))
    assert kept == first == cells.find(Cell("digits", "3", 0, "pca-64"))
    assert kept["images"] == {"train": 146, "test_normal": 37, "test_anomalous": 1614}
    monkeypatch.setattr(sys, "argv", ["run", *command.split()])
    monkeypatch.setattr(run, "compute", None)  # measuring again would call it
    run.main()
    assert json.loads(capsys.readouterr().out) == [kept]


def test_other_settings_are_other_cells_in_the_same_file(results: Path) -> None:
    plain = Cell("digits", "3", 0, "anoscan")
    wide = Cell("digits", "3", 0, "anoscan", (("width", 64),))
    assert plain.path == wide.path == results / "digits" / "anoscan.jsonl"
    cells.keep(wide, {"auroc": 0.5}, "command")
    assert cells.find(plain) is None
    assert cells.find(wide)["auroc"] == 0.5  # type: ignore[index]


def test_a_set_of_a_job_is_one_file(results: Path) -> None:
    assert Cell("lineage/mnist", "3", 0, "wgan").path == results / "lineage" / "mnist.jsonl"


def test_lines_are_in_order_and_a_new_result_takes_the_place_of_the_old(results: Path) -> None:
    for seed, auroc in ((2, 0.1), (0, 0.2), (1, 0.3), (0, 1 / 3)):
        _keep("digits", "anoscan", seed, auroc=auroc)
    found = [(row["seed"], row["auroc"]) for row in cells.load("digits/anoscan")]
    assert found == [(0, 1 / 3), (1, 0.3), (2, 0.1)]
    assert len(Cell("digits", "3", 0, "anoscan").path.read_text(encoding="utf-8").splitlines()) == 3


def test_a_line_that_was_cut_short_is_passed_over_and_mended(results: Path) -> None:
    _keep("digits", "anoscan", 0, auroc=0.5)
    path = Cell("digits", "3", 0, "anoscan").path
    whole = path.read_text(encoding="utf-8")
    path.write_text(whole + whole.replace('"seed": 0', '"seed": 1')[:-9], encoding="utf-8")
    assert [row["seed"] for row in cells.load("digits/*")] == [0]
    _keep("digits", "anoscan", 2, auroc=0.5)
    assert [row["seed"] for row in cells.load("digits/*")] == [0, 2]


def test_of_two_lines_of_a_cell_the_last_one_counts(results: Path) -> None:
    _keep("digits", "anoscan", 0, auroc=0.5)
    path = Cell("digits", "3", 0, "anoscan").path
    whole = path.read_text(encoding="utf-8")
    path.write_text(whole + whole.replace("0.5", "0.75"), encoding="utf-8")
    assert [row["auroc"] for row in cells.load("digits/anoscan")] == [0.75]


def test_results_that_are_kept_at_the_same_time_are_all_there(results: Path) -> None:
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda seed: _keep("digits", "anoscan", seed, auroc=0.5), range(40)))
    assert [row["seed"] for row in cells.load("digits/anoscan")] == list(range(40))


def test_tables_show_means_over_seeds_and_order_methods(results: Path) -> None:
    for method, values in {"anoscan": [0.9, 1.0], "pca-64": [0.8, 0.8]}.items():
        for seed, auroc in enumerate(values):
            _keep("digits", method, seed, auroc=auroc, auroc_by_term={"density": auroc - 0.1})
    lines = one_class.table("digits").splitlines()
    assert lines[2] == "| **anoscan** | 0.950 | 0.950 | 0.071 | 2 | 2 |"
    assert lines[3].startswith("| pca-64 | 0.800")
    assert "| density | 0.850 | 0.850 |" in one_class.terms("digits")


@with_results
def test_tables_are_up_to_date(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["table", "--check"])
    table.main()
    assert {path.stem for path in table.TABLES.iterdir()} == set(table.PAGES)


def test_a_table_that_is_not_up_to_date_fails_the_check(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(table, "TABLES", tmp_path / "tables")
    page = table.Page("Title", "What it shows", "run", lambda: "| figure |\n")
    monkeypatch.setattr(table, "PAGES", {"page": page})
    monkeypatch.setattr(sys, "argv", ["table", "--check"])
    with pytest.raises(SystemExit, match=r"page\.md"):
        table.main()
    assert not table.TABLES.exists()
    monkeypatch.setattr(sys, "argv", ["table"])
    table.main()
    assert table.TABLES.joinpath("page.md").read_text(encoding="utf-8").endswith("| figure |\n")


@with_results
def test_readme_has_the_figures_of_the_summary() -> None:
    """Whatever columns it shows of a set, no figure of its row is another than the results'."""
    readme = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
    summary = {row.split("|")[1].strip(): row for row in one_class.summary().splitlines()}
    compared = 0
    for name in one_class.SETS:
        for row in re.findall(rf"^\| `?{name}`? \|.*$", readme, re.MULTILINE):
            figures = re.findall(r"\d?\.\d{3}", row)
            assert figures
            assert set(figures) <= set(re.findall(r"\d?\.\d{3}", summary[name])), row
            compared += 1
    assert compared >= len(one_class.SETS)


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
    monkeypatch.setattr(lineage, "SHEETS", results / "sheets")
    found = lineage.compute_row(cell, "command", sheets=True)
    assert {"paper", "anogan", "pixel", "latent"} <= set(found["auroc_by_term"])
    assert cell.path == results / "lineage" / "digits.jsonl"
    assert lineage.sheet_path(cell).exists()
    lines = family.lineage("digits").splitlines()
    assert lines[0].startswith("| digits | 3 | mean | sd over seeds | paper | anogan | pixel |")
    assert lines[0].count("|") == lines[2].count("|")
    assert lines[2].startswith("| default |")
    assert "*" not in lines[2]
    del found["auroc_by_term"][family.OF_TODAY]
    cells.keep(cell, found, "command")
    figure = f"{found['auroc']:.3f}"
    starred = family.lineage("digits").splitlines()[2]
    assert starred.startswith(f"| default | {figure}\\* | {figure}\\* | - |")


def test_the_order_of_encoders_has_a_spread_where_there_are_seeds(
    results: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for seed, (paper, error) in enumerate([(0.9, 0.5), (0.8, 0.3), (0.7, 0.4)]):
        for row in ("default", "izi", "vae"):
            found = {"auroc_by_score": {"paper": paper}, "health_values": {"reconstruction": error}}
            if row != "vae" or not seed:
                _keep("lineage/order/digits", row, seed, **found)

    lines = family.order("digits/3").splitlines()

    assert lines[0] == "| mapping | encoder | `paper` digits/3 | error digits/3 | seeds |"
    assert lines[2] == "| `izi_f` | `ae` | 0.800 ± 0.100 | 0.400 ± 0.100 | 3 |"
    assert lines[3] == "| `izi_f` | `vae` | 0.900 | 0.500 | 1 |"
    assert lines[5] == "| `ziz` | `ae` | - | - | 0 |"


def test_rows_are_compared_with_the_default_of_the_same_seed(
    results: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(family, "SETS", {"digits": ("3",)})
    found = {"default": [0.90, 0.80, 0.70], "hinge": [0.92, 0.83, 0.74], "bce": [0.9]}
    for row, values in found.items():
        for seed, auroc in enumerate(values):
            terms = {} if (row, seed) == ("hinge", 2) else {family.OF_TODAY: 0.5}  # an older score
            _keep("lineage/digits", row, seed, auroc=auroc, auroc_by_term=terms)

    lines = family.seeds().splitlines()

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
    text = family.search()
    assert "| digits-3 | search, fool |" in text
    assert "one by one / encoder" in text
