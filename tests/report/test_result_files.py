"""Files of ``score --output``: each format is read back by the library that its users have."""

from __future__ import annotations

import csv
import io
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from anoscan.core.errors import UsageError
from anoscan.detector import Detector
from anoscan.model.score_of_terms import Scorer
from anoscan.report import result_files, spreadsheet
from anoscan.report.rows import COLUMNS
from tests.cli.test_cli import Result, Run, finished, run
from tests.cli.test_disk import check as check_full_disk
from tests.cli.test_disk import refuse
from tests.conftest import Digits

__all__ = ["run"]  # a fixture

openpyxl = pytest.importorskip("openpyxl")
parquet = pytest.importorskip("pyarrow.parquet")
ENDS = (*result_files.FORMATS, ".html")
CONTRACT = [
    *("rank", "path", "page", "score", "p_value", "q_value", "verdict", "nearest_term"),
    *("mismatch", "region_x", "region_y", "region_width", "region_height", "region_score"),
    "reason",
]


@pytest.fixture(scope="module")
def model(few: Digits, tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("model") / "m.safetensors"
    shown = {"images_shown": 640, "encoder_images_shown": 320, "width": 8}
    Detector.train(few.normal, path=file, **shown)
    return file


@pytest.fixture(scope="module")
def folder(few: Digits, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Queries with names that Excel would run or misread, a stack, and a file that is no image."""
    folder = tmp_path_factory.mktemp("parts")
    images = sorted(few.queries.iterdir())
    for image, name in zip(images, ["=1+1.png", "Größe.png", "a,b.png"], strict=False):
        shutil.copy(image, folder / name)
    for image in images[3:20]:
        shutil.copy(image, folder)
    pages = [Image.open(image) for image in images[20:23]]
    pages[0].save(folder / "stack.tif", save_all=True, append_images=pages[1:])
    Image.open(images[24]).resize((20, 10)).save(folder / "wide.png")
    (folder / "bad.png").write_text("no image")
    return folder


@pytest.fixture(scope="module")
def written(
    model: Path, folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, Any]:
    """Folder with a file of each format, and the document of the same run."""
    place = tmp_path_factory.mktemp("written") / "new"
    options = [part for end in ENDS for part in ("-o", place / f"r{end}")]
    result = finished("score", folder, "--model", model, "--json", "--top", 1, *options)
    assert result.code == 3, result.err
    for end in ENDS:
        assert (place / f"r{end}").stat().st_size, end
    whole = json.loads((place / "r.json").read_bytes())
    assert len(result.json["images"]) == 1
    assert whole | {"images": whole["images"][:1]} == result.json
    return place, whole


def expected(document: Any) -> list[dict[str, Any]]:
    """Rows as they follow from the JSON document, without the term that decided."""
    rows = []
    for image in document["images"]:
        region = image["regions"][0] if image["regions"] else {}
        page = image["path"].rpartition("stack.tif/")[2] if "stack.tif" in image["path"] else None
        row = {name: image.get(name) for name in COLUMNS}
        row |= {"page": page and int(page), "mismatch": "; ".join(image["mismatch"] or ()) or None}
        for name in ("x", "y", "width", "height", "score"):
            row[f"region_{name}"] = region.get(name)
        rows.append(row)
    for item in document["skipped"]:
        rows.append(dict.fromkeys(COLUMNS) | item | {"verdict": "skipped"})
    return rows


def without_term(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    for row in rows:
        assert (row["nearest_term"] is None) == (row["verdict"] == "skipped")
        row["nearest_term"] = None
    return rows


def test_columns_are_those_of_the_contract() -> None:
    assert list(COLUMNS) == CONTRACT


def test_csv_has_a_row_an_image_and_skipped_files_at_the_end(written: tuple[Path, Any]) -> None:
    folder, document = written
    data = (folder / "r.csv").read_bytes()
    assert data.startswith(b"\xef\xbb\xbf")  # a name is not ASCII
    rows = list(csv.DictReader(io.StringIO(data.decode("utf-8-sig"))))
    wanted = expected(document)
    assert rows[-1]["verdict"] == "skipped"
    for row, known in zip(rows, wanted, strict=True):
        row["nearest_term"] = ""
        assert row == {name: "" if v is None else str(v) for name, v in known.items()} | {
            "score": "" if known["score"] is None else repr(known["score"])
        }
    assert any(row["page"] == "2" and row["path"].endswith("stack.tif/2") for row in rows)


def test_csv_of_plain_names_has_no_mark_and_formulas_are_defused(
    run: Run, model: Path, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    file = tmp_path / "r.CSV"
    assert run("score", "=1+1.png", "a,b.png", "--model", model, "-o", file).code == 0
    data = file.read_text(encoding="ascii")
    assert data.startswith("rank,path")
    assert {row["path"] for row in csv.DictReader(io.StringIO(data))} == {"'=1+1.png", "a,b.png"}


def test_json_lines_have_the_columns_and_all_fields_of_an_image(
    written: tuple[Path, Any],
) -> None:
    folder, document = written
    lines = [json.loads(line) for line in (folder / "r.jsonl").read_bytes().splitlines()]
    assert len(lines) == len(document["images"]) + 1
    for line, image in zip(lines, document["images"], strict=False):
        assert line["schema"] == "anoscan.image/1"
        assert line == line | image
        assert set(line) == {"schema", *image, *COLUMNS}
    assert lines[-1]["verdict"] == "skipped"
    assert lines[-1] == lines[-1] | document["skipped"][0]


def test_parquet_is_typed_and_says_which_model_it_is_of(written: tuple[Path, Any]) -> None:
    folder, document = written
    table = parquet.read_table(folder / "r.parquet")
    assert table.column_names == CONTRACT
    assert [str(table.schema.field(n).type) for n in ("rank", "page", "score", "path")] == [
        "int64", "int64", "double", "string",
    ]  # fmt: skip
    assert without_term(table.to_pylist()) == expected(document)
    about = json.loads(table.schema.metadata[b"anoscan"])
    assert about["model"] == document["model"]
    assert about["threshold"] == document["threshold"]


def test_the_workbook_has_pictures_a_frozen_header_and_coloured_verdicts(
    written: tuple[Path, Any],
) -> None:
    folder, document = written
    book = openpyxl.load_workbook(folder / "r.xlsx")
    sheet = book["results"]
    assert book.active == sheet
    header, *rows = sheet.iter_rows(values_only=True)
    assert list(header) == CONTRACT
    found = without_term([dict(zip(header, row, strict=True)) for row in rows])
    for row, known in zip(found, expected(document), strict=True):
        assert row == {
            name: pytest.approx(value, rel=1e-14) if isinstance(value, float) else value
            for name, value in known.items()
        }
    assert sheet.freeze_panes == "A2"
    assert (sheet.page_setup.orientation, sheet.page_setup.fitToHeight) == ("landscape", 0)
    assert sheet.print_title_rows == "$1:$1"
    assert len(sheet._images) == len(document["images"])
    assert [image.anchor._from.row for image in sheet._images] == [*range(1, len(rows))]
    for image in sheet._images:
        picture = Image.open(io.BytesIO(image._data()))
        assert max(picture.size) <= 196
        assert len(set(picture.convert("L").tobytes())) > 10  # something is drawn
    verdicts = {cell.value: cell.fill.fgColor.rgb for (cell,) in sheet["G2:G999"] if cell.value}
    assert set(verdicts) == {"normal", "anomalous", "skipped"}
    assert len(set(verdicts.values())) == 3
    formula = next(cell for (cell,) in sheet["B2:B999"] if str(cell.value).endswith("=1+1.png"))
    assert formula.data_type == "s"
    facts = dict(book["run"].iter_rows(values_only=True))
    assert facts["SHA-256"] == document["model"]["sha256"]
    assert facts["scored"] == document["counts"]["scored"]


def test_a_name_like_a_formula_stays_text_when_its_cell_is_edited(
    run: Run, model: Path, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    file = tmp_path / "r.xlsx"
    assert run("score", "=1+1.png", "a,b.png", "--model", model, "-o", file).code == 0
    cells = {c.value: c for (c,) in openpyxl.load_workbook(file)["results"]["B2:B3"]}
    assert {name: cell.quotePrefix for name, cell in cells.items()} == {
        "=1+1.png": True,
        "a,b.png": False,
    }


def test_a_large_workbook_has_several_sheets_and_pictures_of_the_most_anomalous_alone(
    run: Run, model: Path, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(spreadsheet, "MOST_ROWS", 10)
    monkeypatch.setattr(spreadsheet, "MOST_PICTURES", 4)
    run("score", folder, "--model", model, "-q", "-o", tmp_path / "r.xlsx")
    book = openpyxl.load_workbook(tmp_path / "r.xlsx")
    assert book.sheetnames == ["results", "results 2", "results 3", "run"]
    sheets = [book[name] for name in book.sheetnames[:-1]]
    ranks = [c.value for sheet in sheets for (c,) in sheet["A2:A99"] if c.value]
    assert ranks == list(range(1, 25))
    assert [len(sheet._images) for sheet in sheets] == [4, 0, 0]
    assert sorted(image.anchor._from.row for image in sheets[0]._images) == [1, 2, 3, 4]


def test_regions_are_read_back_by_pycocotools(written: tuple[Path, Any]) -> None:
    coco = pytest.importorskip("pycocotools.coco")
    folder, document = written
    read = coco.COCO(str(folder / "r.coco.json"))
    assert [category["name"] for category in read.loadCats(read.getCatIds())] == ["anomaly"]
    assert any(image["regions"] for image in document["images"])
    for image in document["images"]:
        (named,) = read.loadImgs([image["rank"]])
        assert named["file_name"] == image["path"]
        wide = image["path"].endswith("wide.png")
        assert (named["width"], named["height"]) == ((20, 10) if wide else (8, 8))
        boxes = read.loadAnns(read.getAnnIds(imgIds=[image["rank"]]))
        assert [box["bbox"] for box in boxes] == [
            [r["x"], r["y"], r["width"], r["height"]] for r in image["regions"]
        ]
        assert [(box["area"], box["score"]) for box in boxes] == [
            (r["area"], r["score"]) for r in image["regions"]
        ]
    assert read.dataset["skipped"] == document["skipped"]


def test_the_named_term_is_the_one_with_the_highest_weighted_value(
    run: Run, model: Path, folder: Path, written: tuple[Path, Any], tmp_path: Path
) -> None:
    loaded = Detector.load(model).model
    weights = Scorer(loaded.fitted, loaded.calibration).weights("calibrated")
    assert weights["pixel"] == 0
    *images, _ = map(json.loads, (written[0] / "r.jsonl").read_bytes().splitlines())
    for image in images:
        counted = {t: weights[t] * v for t, v in image["terms"].items() if weights[t] > 0}
        assert counted[image["nearest_term"]] == max(counted.values())
    file = tmp_path / "p.csv"
    run("score", folder / "a,b.png", "--model", model, "-o", file, "--score", "pca")
    with file.open(encoding="utf-8") as stream:
        assert [row["nearest_term"] for row in csv.DictReader(stream)] == ["pca"]


# --- refused before anything is scored ----------------------------------------------------------


def refused(result: Result) -> str:
    assert result.code == 2
    assert result.out == ""
    (line,) = result.err.splitlines()
    return line


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["-o", "r.xls"], "r.xls: its name must end with one of .coco.json, .csv, .json"),
        (["-o", "folder"], "folder: its name must end with"),
        (["-o", "here.csv"], "here.csv cannot be written: it is a folder"),
        (["-o", "file/r.csv"], "file/r.csv cannot be written: file is no folder"),
        (["-o", "a.html", "-o", "b.html"], "one HTML page a run. Got a.html and b.html"),
        (["-o", "a.html", "--report", "b.html"], "one HTML page a run"),
        (["-o", "r.csv", "--jsonl"], "--output needs all images: not with --jsonl or --csv"),
        (["-o", "r.csv", "--csv"], "--output needs all images"),
    ],
)
def test_what_cannot_be_written_is_refused_before_the_model_is_read(
    options: list[str], said: str, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").touch()
    (tmp_path / "here.csv").mkdir()
    assert said in refused(run("score", "no-folder", "--model", "none", *options))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "here.csv"]


@pytest.mark.parametrize(
    ("end", "package", "extra"),
    [(".xlsx", "xlsxwriter", "excel"), (".parquet", "pyarrow", "parquet")],
)
def test_a_missing_extra_is_named_before_the_model_is_read(
    end: str, package: str, extra: str, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = result_files.find_spec
    monkeypatch.setattr(
        result_files, "find_spec", lambda name: None if name == package else found(name)
    )
    line = refused(run("score", "no-folder", "--model", "none", "-o", f"r{end}"))
    assert f"r{end}: {package} is not installed." in line
    assert f"'anoscan[{extra}]'" in line


def test_extensions_are_read_from_the_longest(tmp_path: Path) -> None:
    assert result_files.format_of(Path("A.COCO.JSON")) is result_files.FORMATS[".coco.json"]
    assert result_files.format_of(Path("coco.json")) is result_files.FORMATS[".json"]
    assert result_files.format_of(Path("a.coco.jsonl")) is result_files.FORMATS[".jsonl"]
    with pytest.raises(UsageError, match="must end with"):
        result_files.check(tmp_path / "csv")


# --- full disks ---------------------------------------------------------------------------------


@pytest.mark.parametrize("end", [*result_files.FORMATS])
def test_a_full_disk_takes_neither_the_table_nor_the_older_file(
    end: str,
    run: Run,
    model: Path,
    folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    name = f"r{end}"
    command = ["score", folder / "wide.png", "--model", model, "-q", "-o", name]
    assert run(*command).code == 0
    before = (tmp_path / name).read_bytes()
    refuse(monkeypatch, lambda path: path.suffix == ".tmp", room=20)
    result = run(*command, "-o", "other.csv")
    check_full_disk(result, Path(name))
    assert "wide.png" in result.out
    assert [path.name for path in tmp_path.iterdir()] == [name]
    assert (tmp_path / name).read_bytes() == before
    assert run(*command, "--json").out == ""


def test_a_file_that_fails_does_not_keep_the_others_from_being_written(
    run: Run, model: Path, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*given: object) -> None:
        raise UsageError("no room for JSON.")

    monkeypatch.setitem(result_files.FORMATS, ".json", result_files.Format(fail))
    names = ["r.json", "r.csv", "r.html"]
    options = [part for name in names for part in ("-o", tmp_path / name)]
    options += ["--append", tmp_path / "h.csv"]
    result = run("score", folder, "--model", model, *options)
    assert result.err.splitlines()[-1] == "Error: no room for JSON."
    assert "rank" in result.out
    kept = {path.name for path in tmp_path.iterdir() if not path.name.startswith(".")}
    assert kept == {"r.csv", "r.html", "h.csv"}
    assert run("score", folder, "--model", model, *options, "--json").out == ""


def test_an_interrupted_run_leaves_no_file(
    run: Run, model: Path, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*given: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(result_files, "_csv_cell", stop)
    assert run("score", folder, "--model", model, "-o", tmp_path / "r.csv").code == 130
    assert list(tmp_path.iterdir()) == []
