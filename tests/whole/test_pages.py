"""Commands on files of several images: pages are listed, named, labelled and drawn like files."""

from __future__ import annotations

import csv
import io
import json
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image

from anoscan import cli
from anoscan.dataset.split import split, together
from anoscan.images.files import ImageFile
from tests.conftest import Digits

Run = Callable[..., tuple[int, str]]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Run:
    """Call the command line in this process; gives the exit code and what stdout got."""

    def call(*arguments: object, stdin: str = "") -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["anoscan", *map(str, arguments)])
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin.encode())))
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            cli.main()
        return int(ended.value.code or 0), capsys.readouterr().out

    return call


@pytest.fixture(scope="module")
def stack(digits: Digits, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a TIFF of six pages (the last two are odd digits), an array and a PNG."""
    folder = tmp_path_factory.mktemp("stack")
    files = sorted(digits.queries.iterdir())
    rows = digits.labels.read_text(encoding="utf-8").splitlines()[1:]
    labels = {row.split(",")[0].removeprefix("queries/"): row.endswith("1") for row in rows}
    normal = [np.asarray(Image.open(file)) for file in files if not labels[file.name]]
    odd = [np.asarray(Image.open(file)) for file in files if labels[file.name]]
    tifffile.imwrite(folder / "scan.tif", np.stack([*normal[:4], *odd[:2]]))
    np.save(folder / "many.npy", np.stack(normal[4:9]))
    Image.fromarray(normal[9]).save(folder / "one.png")
    (folder / "damaged.npy").write_bytes(b"\x93NUMPY\x01\x00")
    return folder


PATHS = [
    *(f"many.npy/{n}" for n in range(1, 6)),
    "one.png",
    *(f"scan.tif/{n}" for n in range(1, 7)),
]


def test_every_page_is_scored_and_a_page_alone_scores_the_same(
    run: Run, model_file: Path, stack: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(stack.parent)
    code, out = run("score", stack.name, "--model", model_file, "--json")
    report = json.loads(out)
    assert code == 3
    assert report["skipped"] == [{"path": f"{stack.name}/damaged.npy", "reason": "damaged image"}]
    scores = {image["path"]: image["score"] for image in report["images"]}
    assert sorted(scores) == [f"{stack.name}/{path}" for path in PATHS]

    code, out = run("score", f"{stack.name}/scan.tif/5", "--model", model_file, "--json")
    assert code == 0
    (alone,) = json.loads(out)["images"]
    assert alone["path"] == f"{stack.name}/scan.tif/5"
    assert alone["score"] == pytest.approx(scores[alone["path"]], abs=1e-6)

    code, out = run("score", stack.name, "--model", model_file, "--top", 2)
    assert [line.split()[-1].rpartition("/")[0] for line in out.splitlines()[1:3]] == [
        f"{stack.name}/scan.tif"
    ] * 2


def test_pages_stand_in_jsonl_csv_and_lists_on_stdin(
    run: Run, model_file: Path, stack: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(stack)
    code, out = run("score", ".", "--model", model_file, "--jsonl")
    assert [json.loads(line)["path"] for line in out.splitlines()] == [f"./{p}" for p in PATHS]
    listed = "scan.tif/6\nmany.npy\nscan.tif/7\n"
    code, out = run("score", "-", "--model", model_file, "--csv", stdin=listed)
    assert code == 3
    named = [row["path"] for row in csv.DictReader(io.StringIO(out))]
    assert named == ["scan.tif/6", *PATHS[:5]]


def test_pages_have_pictures_of_their_own(
    run: Run, model_file: Path, stack: Path, tmp_path: Path
) -> None:
    _, out = run("score", stack, "--model", model_file, "--json", "--residuals", tmp_path / "out")
    drawn = [Path(image["residual"]) for image in json.loads(out)["images"]]
    assert all(path.is_file() for path in drawn)
    names = {path.relative_to(tmp_path / "out").as_posix() for path in drawn}
    assert names == {f"{path}.residual.png" for path in PATHS}


def test_labels_name_pages(run: Run, model_file: Path, stack: Path, tmp_path: Path) -> None:
    rows = [f"scan.tif/{n},{int(n > 4)}" for n in range(1, 7)] + ["many.npy,0", "scan.tif/9,1"]
    (tmp_path / "labels.csv").write_text("\n".join(["path,label", *rows]) + "\n", encoding="utf-8")
    code, out = run(
        "eval", stack, "--labels", tmp_path / "labels.csv", "--model", model_file, "--json"
    )
    assert code == 3
    report = json.loads(out)
    found = report["images"]
    assert (found["normal"], found["anomalous"]) == (4, 2)
    assert {item["path"]: item["reason"] for item in found["skipped"]} == {
        "many.npy": "holds 5 images: add a number to the path, as in scan.tif/1",
        "scan.tif/9": "has no page 9: it has 6",
    }
    # The pages of many.npy (the label names none of them), damaged.npy and one.png.
    assert found["unlabelled"] == 7
    assert report["auroc"] > 0.8


def test_doctor_and_train_take_stacks_for_their_images(
    run: Run, digits: Digits, tmp_path: Path
) -> None:
    some = [np.asarray(Image.open(file)) for file in sorted(digits.normal.iterdir())[:40]]
    deep = np.stack(some).astype(np.uint16) * 100
    (tmp_path / "set").mkdir()
    tifffile.imwrite(tmp_path / "set" / "a.tif", deep[:20], photometric="minisblack")
    np.save(tmp_path / "set" / "b.npy", deep[20:])

    _, out = run("doctor", tmp_path / "set", "--json")
    about = json.loads(out)["images"]
    assert (about["found"], about["readable"]) == (40, 40)
    assert about["bit_depths"] == {"16-bit grey": 40}

    short = ("--images-shown", 64, "--encoder-images-shown", 64, "--width", 4)
    code, out = run("train", tmp_path / "set", "--name", "stack", "--json", *short)
    assert code == 0
    assert json.loads(out)["images"]["found"] == 40


def test_pages_of_a_file_are_held_out_together_where_there_are_enough_files() -> None:
    def pages(files: int, each: int) -> tuple[list[ImageFile], list[bytes]]:
        names = [(f"{n}.tif", page) for n in range(files) for page in range(1, each + 1)]
        found = [ImageFile(f"{name}/{page}", Path(name), name, page) for name, page in names]
        return found, [f"{name}{page}".encode() for name, page in names]

    many, digests = pages(30, 10)
    rows, held = split(together(many, digests), 0, 0.1)
    assert len(held) == 50  # as few as are held out of any folder
    assert {many[row].file for row in rows}.isdisjoint(many[row].file for row in held)
    renamed = [replace(image, file=Path("x", image.file)) for image in many]
    assert together(renamed, digests) == together(many, digests)

    few, digests = pages(3, 100)
    assert together(few, digests) == digests
    plain = [replace(image, page=None) for image in many]
    assert together(plain, digests) == digests
