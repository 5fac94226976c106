from __future__ import annotations

import os
from pathlib import Path, PurePosixPath
from typing import IO

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from PIL import Image

from anoscan.core.errors import InputError
from anoscan.report import pictures


def test_a_panel_shows_query_reconstruction_and_residual_from_left_to_right() -> None:
    query, reconstruction = np.full((1, 32, 32), -1.0), np.full((3, 32, 32), 1.0)

    panel = pictures.panel(query, reconstruction, np.zeros((32, 32)), 1.0)

    assert (panel.mode, panel.size) == ("RGB", (3 * 192 + 2 * 4, 192))
    assert panel.getpixel((5, 5)) == (0, 0, 0)
    assert panel.getpixel((196 + 5, 5)) == (255, 255, 255)
    assert panel.getpixel((2 * 196 + 5, 5)) == (0, 0, 4)


def test_colour_channels_keep_their_order() -> None:
    red = np.stack([np.ones((8, 8)), -np.ones((8, 8)), -np.ones((8, 8))])
    assert pictures.panel(red, red, np.zeros((8, 8)), 1.0).getpixel((0, 0)) == (255, 0, 0)


@pytest.mark.parametrize(("side", "shown"), [(28, 196), (64, 192), (128, 256), (400, 400)])
def test_pictures_grow_by_whole_factors_and_never_shrink(side: int, shown: int) -> None:
    picture = np.zeros((1, side, side))
    assert pictures.panel(picture, picture, picture[0], 1.0).height == shown


def test_enlarged_pixels_stay_sharp() -> None:
    query = np.array([[[-1.0, 1.0], [1.0, -1.0]]])
    panel = pictures.panel(query, query, query[0], 1.0, zoom_to=8)
    assert set(np.asarray(panel)[:, :8].ravel().tolist()) == {0, 255}
    assert panel.getpixel((3, 3)) == (0, 0, 0)
    assert panel.getpixel((4, 3)) == (255, 255, 255)


@pytest.mark.parametrize(("shape", "size"), [((60, 80), (192, 144)), ((900, 1), (1, 192))])
def test_square_views_get_the_proportions_of_their_image(
    shape: tuple[int, int], size: tuple[int, int]
) -> None:
    query, white = np.full((1, 32, 32), -1.0), np.full((1, 32, 32), 1.0)
    query[:, -1] = 1.0  # the last row must not be cut off
    panel = pictures.panel(query, white, np.zeros((32, 32)), 1.0, shape=shape, like=[white])
    width, height = size
    assert panel.size == (3 * (width + 4) + 192, 192)  # the like keep theirs
    assert panel.getpixel((0, height - 1)) == (255, 255, 255)
    assert panel.getpixel((0, height // 2)) == (0, 0, 0)
    assert panel.getpixel((width + 4, height // 2)) == (255, 255, 255)


def test_a_residual_gets_lighter_with_the_anomaly_up_to_the_scale() -> None:
    ramp = np.linspace(0, 2.0, 257)[None]
    picture = np.zeros((1, 1, 257))
    panel = pictures.panel(picture, picture, ramp, 1.0, zoom_to=257)
    lightness = np.asarray(panel.crop((2 * 261, 0, 3 * 257 + 8, 1)).convert("L"))[0].astype(int)

    assert (np.diff(lightness) >= 0).all()
    assert len(np.unique(lightness[:129])) > 90
    assert (lightness[128:] == lightness[-1]).all()


def test_the_same_anomaly_has_the_same_colour_in_every_panel() -> None:
    picture = np.zeros((1, 4, 4))
    quiet, loud = np.full((4, 4), 0.3), np.full((4, 4), 0.3)
    loud[0, 0] = 5
    at = (2 * 196 + 190, 190)
    assert pictures.panel(picture, picture, quiet, 1.0).getpixel(at) == pictures.panel(
        picture, picture, loud, 1.0
    ).getpixel(at)


@pytest.mark.parametrize("scale", [0.0, 1e-300])
def test_senseless_values_still_give_a_picture(scale: float) -> None:
    picture = np.array([[[np.nan, 9.0], [-9.0, np.inf]]], np.float32)
    residual = np.array([[np.nan, np.inf], [0, 3e38]], np.float32)
    panel = pictures.panel(picture, picture, residual, scale, zoom_to=2)
    assert panel.getpixel((1, 0)) == (255, 255, 255)
    assert panel.getpixel((12 + 1, 0)) == (252, 255, 164)
    assert panel.getpixel((12, 1)) == (0, 0, 4)


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

    def full(self: Image.Image, file: IO[bytes], **_: str) -> None:
        file.write(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Image.Image, "save", full)
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


def test_views_fit_the_side_and_keep_a_single_odd_pixel_bright() -> None:
    anomaly_map = np.zeros((1000, 600))
    anomaly_map[501, 301] = 1.0

    drawn = pictures.views(
        np.zeros((1, 300, 200)), np.zeros((3, 1000, 600)), anomaly_map, 1.0, side=128
    )

    assert [max(view.size) for view in drawn] == [128, 128, 125]
    assert np.asarray(drawn.anomaly_map).max() == 255
