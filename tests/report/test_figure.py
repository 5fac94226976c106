"""The layout of a picture: title, boxes, colour bar and placards."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFont

from anoscan.report import figure
from anoscan.report.figure import Box, ColourBar, Pane, Title

CYAN = (0, 235, 255)
BAR = ColourBar(7.94, "standard deviations")
ABOVE, BELOW = Box(0.25, 0.25, 0.5, 0.5, False), Box(0.25, 0.25, 0.5, 0.5, True)


def marked(image: Image.Image) -> np.ndarray:
    found: np.ndarray = (np.asarray(image) == CYAN).all(-1)
    return found


def laid_out(size: tuple[int, int], *boxes: Box, name: str = "a.png", n: int = 1) -> Image.Image:
    panes = [Pane(Image.new("RGB", size, "white"), "image", boxes)] * n
    return figure.figure(panes, Title(name, "score 1", True), BAR)


def white(image: Image.Image) -> tuple[int, int, int, int]:
    """The box around all white pixels, where the ground of a figure is dark and texts are grey."""
    rows, columns = np.nonzero((np.asarray(image) == 255).all(-1))
    return columns.min(), rows.min(), columns.max() + 1, rows.max() + 1


@pytest.mark.parametrize("size", [(512, 512), (12, 300), (300, 12), (2048, 1500), (1, 2048)])
def test_a_view_is_whole_between_a_title_and_a_colour_bar(size: tuple[int, int]) -> None:
    drawn = laid_out(size)
    left, top, right, bottom = white(drawn)
    assert (right - left, bottom - top) == size
    assert top > 40
    assert drawn.height - bottom > 40
    assert drawn.width >= 400
    below = np.asarray(drawn)[bottom:].reshape(-1, 3).astype(int)
    assert (np.abs(below - (249, 203, 53)).sum(1) < 30).any()  # the brightest colour of a map


def test_captions_of_narrow_views_do_not_overlap() -> None:
    panes = [Pane(Image.new("RGB", (20, 300), "white"), "map over the image")] * 3
    drawn = figure.figure(panes, Title("a", "b", False), BAR)
    left, _, right, _ = white(drawn)
    assert right - left > 2 * 110


def test_texts_grow_with_the_picture() -> None:
    assert white(laid_out((2048, 2048)))[1] > 1.8 * white(laid_out((512, 512)))[1]


def test_a_box_is_drawn_around_its_region_and_leaves_it_free() -> None:
    drawn = figure.boxed(Image.new("RGB", (200, 100), "white"), [ABOVE])
    rows, columns = np.nonzero(marked(drawn))
    assert (columns.min(), columns.max()) == (48, 152)
    assert (rows.min(), rows.max()) == (23, 77)
    assert (np.asarray(drawn)[27:73, 53:147] == 255).all()


def test_a_box_below_the_level_is_dashed() -> None:
    solid, dashed = (
        marked(figure.boxed(Image.new("RGB", (200, 200), "white"), [box])) for box in (ABOVE, BELOW)
    )
    assert solid[48, 48:152].all()
    assert 0.3 < dashed[48, 48:152].mean() < 0.8
    assert 0.3 < dashed[48:152, 48].mean() < 0.8


def test_the_box_of_a_single_pixel_can_be_seen_even_in_a_corner() -> None:
    for at in (0.0, 0.5, 1 - 1 / 512):
        box = Box(at, at, 1 / 512, 1 / 512, False)
        assert marked(figure.boxed(Image.new("RGB", (512, 512)), [box])).sum() >= 30


def test_the_legend_explains_the_boxes_that_are_there() -> None:
    plain, one, both = (
        laid_out((400, 400), *boxes).height for boxes in ((), (BELOW,), (ABOVE, BELOW))
    )
    assert plain < one < both


def test_a_legend_that_is_too_long_for_its_picture_goes_on_in_the_next_line() -> None:
    one_line, wrapped = (laid_out((side, 384), BELOW).height for side in (600, 384))
    assert one_line < wrapped


def test_a_long_name_is_cut_in_the_middle() -> None:
    words, font = figure.legible("start-" + "x" * 400 + "-end.png", 16)
    cut = figure.shortened(words, font, 300)
    assert cut.startswith("start-xx")
    assert cut.endswith("-end.png")
    assert "..." in cut
    assert 250 < font.getlength(cut) <= 300
    assert figure.shortened(words, font, 1) == ""
    assert figure.shortened("short", font, 300) == "short"


HOSTILE = ["日本語.png", "é.png", "عربى", "👍", "line\nbreak", "\udcff", "\u202e", "a\u0301", ""]


@pytest.mark.parametrize("name", HOSTILE)
def test_letters_that_no_font_has_become_escapes(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(figure, "_FONTS", ())
    words, _ = figure.legible(name, 16)
    assert words.isascii()
    assert laid_out((100, 100), name=name).width >= 400
    monkeypatch.undo()
    assert laid_out((100, 100), name=name).width >= 400


def test_another_font_is_used_where_it_has_all_letters(monkeypatch: pytest.MonkeyPatch) -> None:
    matplotlib = pytest.importorskip("matplotlib")
    font = Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf"
    monkeypatch.setattr(figure, "_FONTS", ("no such font.ttf", str(font)))
    assert figure.legible("été Ω.png", 16)[0] == "été Ω.png"
    assert figure.legible("plain.png", 16)[1] is figure.legible("", 16)[1]


def test_a_pillow_without_freetype_draws_titles_too(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = ImageFont.load_default_imagefont()
    monkeypatch.setattr(figure, "_own_font", lambda size: plain)
    monkeypatch.setattr(figure, "_installed", lambda name, size: None)
    assert laid_out((100, 100), BELOW, name="日é.png").width >= 400


@pytest.mark.parametrize("size", [(512, 512), (96, 96), (320, 60), (40, 320), (8, 8), (1, 1)])
def test_a_placard_is_grey_and_has_its_words_where_they_fit(size: tuple[int, int]) -> None:
    drawn = figure.placard(size, figure.NO_RECONSTRUCTION)
    pixels = np.asarray(drawn)
    assert drawn.size == size
    assert (pixels[0] == pixels[0, 0]).all()
    assert (pixels.max() > 200) == (size[0] >= 90)
