"""Patterns of paths, in quotes, where a shell does not expand them."""

from __future__ import annotations

import io
import sys
from pathlib import Path

import pytest

from anoscan.cli import queries
from anoscan.core.errors import InputError
from anoscan.evaluation.labels import gather
from anoscan.images.files import find
from anoscan.images.globs import expanded, root_of
from anoscan.images.layout import query_paths, training_paths
from anoscan.model import names


def touched(root: Path, *names: str) -> Path:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    return root


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    names = ("imgs/a.png", "imgs/deep/b.png", "imgs/deep/er/c.jpg", "imgs/d.txt", "imgs/.e.png")
    return touched(tmp_path, *names, "x[1].png", "x1.png")


def found(pattern: str) -> list[str]:
    return [image.path for image in find(query_paths([pattern])[0])]


@pytest.mark.usefixtures("root")
def test_a_pattern_is_what_it_matches() -> None:
    assert found("imgs/**/*.png") == ["imgs/a.png", "imgs/deep/b.png"]
    assert found("imgs/*.png") == ["imgs/a.png"]
    every = ["imgs/a.png", "imgs/deep/b.png", "imgs/deep/er/c.jpg"]
    assert found("imgs/**") == every
    assert found("imgs/**/*") == every
    assert found("im?s/deep") == ["imgs/deep/b.png", "imgs/deep/er/c.jpg"]
    assert found("imgs/*.txt") == ["imgs/d.txt"]
    assert training_paths(["imgs/d*"])[0] == [Path("imgs/deep")]


@pytest.mark.usefixtures("root")
def test_a_file_whose_name_looks_like_a_pattern_is_itself() -> None:
    assert found("x[1].png") == ["x[1].png"]
    Path("x[1].png").unlink()
    assert found("x[1].png") == ["x1.png"]


@pytest.mark.usefixtures("root")
def test_a_pattern_without_a_match_is_an_error() -> None:
    with pytest.raises(InputError, match=r"no file matches imgs/\*.tif") as caught:
        expanded(["imgs/*.tif"])
    assert "**" in (caught.value.hint or "")


def test_names_of_a_list_on_stdin_are_no_patterns(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (root / "x[1].png").unlink()
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"x[1].png\n")))
    files, _ = queries.gather(["-"])
    assert [image.path for image in files] == ["x[1].png"]


@pytest.mark.usefixtures("root")
def test_a_pattern_is_named_after_the_folder_that_it_starts_from() -> None:
    assert root_of("imgs/**/*.png") == Path("imgs")
    assert names.name_for(Path("imgs/**/*.png")) == "imgs"
    assert root_of("imgs/a.png") == Path("imgs/a.png")


def test_folders_laid_out_like_mvtec_are_narrowed_in_a_pattern_too(root: Path) -> None:
    for name in ("bolt", "nut"):
        touched(root / "sets" / name, "train/good/0.png", "test/good/1.png", "test/bad/2.png")
    paths, note = training_paths(["sets/*"])
    assert paths == [Path("sets/bolt/train/good"), Path("sets/nut/train/good")]
    assert "laid out like MVTec AD" in (note or "")


def test_labelled_images_are_those_that_a_pattern_matches(root: Path) -> None:
    touched(root / "parts", "good/a.png", "good/b.jpg", "bad/c.png", "bad/deep/d.png")
    everything = gather(None, Path("parts"), None)
    assert len(everything.images) == 4
    some = gather(None, Path("parts/**/*.png"), None)
    assert [i.image.inside for i in some.images] == ["bad/c.png", "bad/deep/d.png", "good/a.png"]
    csv = root / "labels.csv"
    csv.write_text("path,label\ngood/a.png,0\ngood/b.jpg,0\nbad/c.png,1\n")
    assert len(gather(csv, Path("parts/*"), None).images) == 3
    assert [i.image.inside for i in gather(csv, Path("parts/*/*.png"), None).images] == [
        "good/a.png",
        "bad/c.png",
    ]
    with pytest.raises(InputError, match="no file matches"):
        gather(csv, Path("parts/*.tif"), None)
