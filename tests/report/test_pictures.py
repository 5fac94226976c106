from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import IO

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from PIL import Image

from anoscan.core.errors import InputError
from anoscan.report import pictures


def test_colour_channels_keep_their_order() -> None:
    red = np.stack([np.ones((8, 8)), -np.ones((8, 8)), -np.ones((8, 8))])
    assert pictures.picture(red).getpixel((0, 0)) == (255, 0, 0)


@pytest.mark.parametrize(("side", "shown"), [(28, 504), (64, 512), (300, 600), (400, 400)])
def test_pictures_grow_by_whole_factors_and_never_shrink(side: int, shown: int) -> None:
    assert pictures.enlarged(pictures.picture(np.zeros((1, side, side))), 512).height == shown


def test_enlarged_pixels_stay_sharp() -> None:
    query = np.array([[[-1.0, 1.0], [1.0, -1.0]]])
    drawn = pictures.enlarged(pictures.picture(query), 8)
    assert set(np.asarray(drawn).ravel().tolist()) == {0, 255}
    assert drawn.getpixel((3, 3)) == (0, 0, 0)
    assert drawn.getpixel((4, 3)) == (255, 255, 255)


def test_colours_get_lighter_with_the_anomaly_up_to_the_scale() -> None:
    ramp = pictures.coloured(np.linspace(0, 2.0, 257)[None], 1.0)
    lightness = np.asarray(ramp.convert("L"))[0].astype(int)

    assert (np.diff(lightness) >= 0).all()
    assert len(np.unique(lightness[:129])) > 90
    assert (lightness[128:] == lightness[-1]).all()


def test_the_same_anomaly_has_the_same_colour_in_every_picture() -> None:
    quiet, loud = np.full((4, 4), 0.6), np.full((4, 4), 0.6)
    loud[0, 0] = 5
    grey = Image.new("RGB", (40, 40), "grey")
    alone = [pictures.coloured_at((40, 40), values, 1.0) for values in (quiet, loud)]
    over = [pictures.overlay(grey, values, 1.0) for values in (quiet, loud)]
    for first, second in (alone, over):
        assert first.getpixel((35, 35)) == second.getpixel((35, 35))


@pytest.mark.parametrize("scale", [0.0, 1e-300])
def test_senseless_values_still_give_a_picture(scale: float) -> None:
    picture = np.array([[[np.nan, 9.0], [-9.0, np.inf]]], np.float32)
    residual = np.array([[np.nan, np.inf], [0, 3e38]], np.float32)
    drawn = pictures.picture(picture)
    assert drawn.getpixel((1, 0)) == (255, 255, 255)
    colours = pictures.coloured(residual, scale)
    assert colours.getpixel((1, 0)) == (249, 203, 53)
    assert colours.getpixel((0, 1)) == (0, 0, 4)
    assert pictures.overlay(drawn, residual, scale).size == (2, 2)


@pytest.mark.parametrize("ground", ["black", "white", "grey", "saddlebrown", "royalblue"])
def test_heat_is_seen_on_every_ground_and_calm_places_stay_as_they_are(ground: str) -> None:
    image, values = Image.new("RGB", (60, 60), ground), np.zeros((60, 60))
    values[10:20, 10:20], values[40:50, 40:50] = 0.5, 1.0
    both = np.asarray(pictures.overlay(image, values, 1.0)).astype(int)
    plain = np.asarray(image.convert("L").convert("RGB")).astype(int)
    assert (both[0, 30] == plain[0, 30]).all()
    assert np.abs(both[15, 15] - plain[15, 15]).sum() > 60
    assert np.abs(both[45, 45] - plain[45, 45]).sum() > 120


def test_a_spot_one_place_wide_is_not_lost_in_a_smaller_picture() -> None:
    anomaly_map = np.zeros((1000, 600))
    anomaly_map[501, 301] = 1.0
    for size in ((60, 100), (600, 50), (30, 1000), (59, 99)):
        assert np.asarray(pictures.coloured_at(size, anomaly_map, 1.0)).max() > 200


def test_a_sheet_puts_panels_below_each_other() -> None:
    rows = [Image.new("RGB", (30, 10), "red"), Image.new("RGB", (20, 10), "blue")]
    sheet = pictures.sheet(rows)
    assert sheet.size == (30, 24)
    assert sheet.getpixel((29, 9)) == (255, 0, 0)
    assert sheet.getpixel((19, 14)) == (0, 0, 255)


def test_a_grid_fills_rows_first() -> None:
    images = np.linspace(-1, 1, 5)[:, None, None, None] * np.ones((5, 1, 8, 8))
    grid = pictures.grid(images, 3, zoom_to=16)
    assert grid.size == (3 * 16 + 2 * 4, 2 * 16 + 4)
    assert [grid.getpixel((x, y)) for x, y in [(0, 0), (20, 0), (40, 0), (0, 20), (20, 20)]] == [
        (level,) * 3 for level in (0, 64, 128, 191, 255)
    ]


def test_nothing_to_show_is_an_error() -> None:
    with pytest.raises(ValueError, match="no pictures"):
        pictures.sheet([])
    with pytest.raises(ValueError, match="no pictures"):
        pictures.grid(np.zeros((0, 1, 8, 8)), 3)


def test_pngs_are_written_with_their_folders_and_replace_what_was_there(tmp_path: Path) -> None:
    path = tmp_path / "new" / "folder" / "x.png"
    for colour in ("red", "blue"):
        pictures.save_png(Image.new("RGB", (4, 4), colour), path)
    with Image.open(path) as image:
        assert (image.format, image.getpixel((0, 0))) == ("PNG", (0, 0, 255))
    assert [file.name for file in path.parent.iterdir()] == ["x.png"]


def test_a_failed_write_leaves_the_old_picture_and_no_rubbish(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "x.png"
    path.write_bytes(b"old")

    replacing = pictures.replacing

    class Full:
        def __init__(self, file: IO[bytes]) -> None:
            self.file = file

        def write(self, data: bytes) -> None:
            self.file.write(data[: len(data) // 2])
            raise OSError(28, "No space left on device")

    @contextmanager
    def full(path: Path) -> Iterator[Full]:
        with replacing(path) as file:
            yield Full(file)

    monkeypatch.setattr(pictures, "replacing", full)
    with pytest.raises(InputError, match="No space left"):
        pictures.save_png(Image.new("L", (4, 4)), path)
    assert path.read_bytes() == b"old"
    assert [file.name for file in tmp_path.iterdir()] == ["x.png"]


def test_a_file_in_the_place_of_a_folder_is_an_error_that_names_it(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match=r"cannot write .*x\.png: .*file is no folder"):
        pictures.save_png(Image.new("L", (4, 4)), tmp_path / "file" / "x.png")


@pytest.mark.parametrize(
    ("inside", "written"),
    [
        ("b.png", "b.png.residual.png"),
        ("a/b [1].png", "a/b [1].png.residual.png"),
        ("50% of é.png", "50% of é.png.residual.png"),
        ("../../etc/x", "%2E%2E/%2E%2E/etc/x.residual.png"),
        ("/etc/x", "%2F/etc/x.residual.png"),
        ("C:/x", "C%3A/x.residual.png"),
        ("a\\..\\x", "a%5C..%5Cx.residual.png"),
        ("line\nbreak", "line%0Abreak.residual.png"),
    ],
)
def test_output_paths_mirror_the_input_and_stay_in_the_folder(inside: str, written: str) -> None:
    assert pictures.output_path(Path("out"), inside) == Path("out") / written


names = st.text(st.sampled_from("aA.%/\\:~2EFg\n\0é\udcff"), max_size=8)


@given(names, names)
@example("a//b", "a/b")
@example(".", "%2E")
@example("%2E", "%252E")
@example("", "%2F")
@example("x%~", "x~")
def test_output_paths_never_collide_nor_escape(first: str, second: str) -> None:
    folder = Path("out")
    paths = [pictures.output_path(folder, inside) for inside in (first, second)]
    assert (paths[0] == paths[1]) == (first == second)
    for path in paths:
        relative = PurePosixPath(path.relative_to(folder))
        assert ".." not in relative.parts
        assert PurePosixPath(os.path.normpath(folder / relative)).is_relative_to("out")


def test_a_picture_never_wants_the_name_of_a_folder(tmp_path: Path) -> None:
    for inside in ["a.png", "a.png.residual.png/b.png", "A.PNG.RESIDUAL.PNG/b.png"]:
        pictures.save_png(Image.new("L", (2, 2)), pictures.output_path(tmp_path, inside))
    assert len([file for file in tmp_path.rglob("*.png") if file.is_file()]) == 3


def test_names_too_long_for_a_file_system_are_cut_and_stay_different(tmp_path: Path) -> None:
    insides = ["é" * 120 + tail for tail in ("a.png", "b.png")]
    insides += ["\n" * 250 + "a", os.fsdecode(b"\xff" * 250), "d" * 250 + "/x.png"]
    paths = [pictures.output_path(tmp_path, inside) for inside in insides]
    assert len(set(paths)) == len(paths)
    for path in paths:
        pictures.save_png(Image.new("L", (2, 2)), path)
        assert path.exists()
