"""Cutting large images into tiles, and blending what was made of them."""

from __future__ import annotations

import itertools
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from anoscan.images.canvas import BLANK, TRIES, Canvas
from anoscan.images.tiles import WORST, Blender, Grid, worst

sizes = st.integers(16, 70)
relaxed = settings(max_examples=60, deadline=None)


@st.composite
def canvases(draw: st.DrawFn) -> tuple[Canvas, int]:
    """Images of all kinds, and a side of tiles that fit."""
    height, width = draw(sizes), draw(sizes)
    side = draw(st.integers(2, min(height, width)))
    rng = np.random.default_rng(draw(st.integers(0, 100)))
    kind = draw(st.sampled_from(["grey", "grey as RGB", "RGB", "deep"]))
    shape = (height, width, 3) if kind == "RGB" else (height, width)
    if kind == "deep":
        samples = rng.integers(0, 65536, shape).astype(np.float32)
        return Canvas(samples, 1, (1000.0, 60000.0)), side
    samples = rng.integers(0, 256, shape).astype(np.uint8)
    return Canvas(samples, 1 if kind == "grey" else 3, None), side


@relaxed
@given(sizes, sizes, st.integers(2, 70))
def test_tiles_cover_every_pixel_and_neighbours_overlap_by_half(
    height: int, width: int, side: int
) -> None:
    if side > min(height, width):
        with pytest.raises(ValueError, match="do not fit"):
            Grid.over(height, width, side)
        return
    grid = Grid.over(height, width, side)
    for starts, length in ((grid.tops, height), (grid.lefts, width)):
        assert starts[0] == 0
        assert starts[-1] + side == length
        gaps = [after - before for before, after in itertools.pairwise(starts)]
        assert all(0 < gap <= side // 2 for gap in gaps)
        # No more of them than it takes.
        assert len(gaps) < (length - side) / (side // 2) + 1
    assert len(grid) == len(grid.tops) * len(grid.lefts)


def blended(grid: Grid, batches: list[np.ndarray]) -> np.ndarray:
    blender = Blender(grid, batches[0].shape[1])
    rows = [found for batch in batches for found in blender.add(batch)]
    # Every row once, from the top down.
    tops = [top for top, _ in rows]
    ends = [top + band.shape[1] for top, band in rows]
    assert [0, *ends[:-1]] == tops
    assert ends[-1] == grid.height
    return np.concatenate([band for _, band in rows], axis=1)


@relaxed
@given(canvases(), st.integers(1, 9))
def test_tiles_blended_unchanged_give_the_image_itself(
    drawn: tuple[Canvas, int], most: int
) -> None:
    canvas, side = drawn
    grid = Grid.over(canvas.height, canvas.width, side)
    batches = list(grid.cut(canvas, most))
    assert sum(map(len, batches)) == len(grid)
    assert max(map(len, batches)) <= most
    np.testing.assert_allclose(blended(grid, batches), canvas.whole(), atol=1e-5)


@relaxed
@given(sizes, sizes, st.integers(2, 16), st.integers(1, 9))
def test_blending_a_constant_gives_the_constant(
    height: int, width: int, side: int, most: int
) -> None:
    grid = Grid.over(height, width, side)
    tiles = np.full((len(grid), 2, side, side), 0.7, np.float32)
    batches = [tiles[start : start + most] for start in range(0, len(tiles), most)]
    np.testing.assert_allclose(blended(grid, batches), 0.7, rtol=1e-5)


def test_no_seam_shows_between_tiles_that_disagree() -> None:
    grid = Grid.over(64, 64, 16)
    values = np.random.default_rng(0).normal(size=len(grid)).astype(np.float32)
    tiles = np.broadcast_to(values[:, None, None, None], (len(grid), 1, 16, 16))
    picture = blended(grid, [np.ascontiguousarray(tiles)])[0]
    jumps = max(np.abs(np.diff(picture, axis=axis)).max() for axis in (0, 1))
    between = np.abs(np.diff(values.reshape(len(grid.tops), -1), axis=1)).max()
    # Half a tile apart the whole difference, spread over eight pixels: no pixel has most of it.
    assert jumps < 0.35 * between


def test_parts_are_scaled_as_whole_images_are() -> None:
    grey = Canvas(np.array([[0, 255], [51, 204]], np.uint8), 3, None)
    assert grey.whole().shape == (3, 2, 2)
    np.testing.assert_allclose(grey.part(0, 0, 1, 2)[2], [[-1, 1]], atol=1e-6)
    deep = Canvas(np.array([[100, 200], [150, 1e6]], np.float32), 1, (100.0, 200.0))
    np.testing.assert_allclose(deep.whole()[0], [[-1, 1], [0, 3]])
    assert deep.whole().dtype == np.float32
    colour = Canvas(np.arange(12, dtype=np.uint8).reshape(2, 2, 3), 3, None)
    np.testing.assert_allclose(colour.part(1, 1, 1, 1)[:, 0, 0], np.array([9, 10, 11]) / 127.5 - 1)


def test_a_reduced_image_is_the_means_of_its_blocks() -> None:
    samples = np.random.default_rng(0).integers(0, 255, (100, 77)).astype(np.uint8)
    canvas = Canvas(samples, 1, None)

    small = canvas.reduced(10)

    assert small.shape == (1, 10, 7)
    np.testing.assert_allclose(small[0, 9, 6], canvas.whole()[0, 90:100, 60:70].mean(), rtol=1e-5)
    np.testing.assert_array_equal(canvas.reduced(100), canvas.whole())


def test_crops_lie_inside_and_avoid_what_is_blank() -> None:
    samples = np.zeros((60, 60), np.uint8)
    samples[:, 30:] = np.random.default_rng(0).integers(0, 256, (60, 30))
    draws = np.random.default_rng(1).random((300, TRIES, 2))
    crops = Canvas(samples, 1, None).crops(8, draws)
    blank = np.mean([np.ptp(crop) <= BLANK for crop in crops])
    # By chance 42 % are blank; all three places drawn are in 8 %.
    assert 0 < blank < 0.15
    assert Canvas(np.zeros((9, 9), np.uint8), 1, None).crops(8, draws).max() == -1
    ends = np.stack([np.zeros((TRIES, 2)), np.full((TRIES, 2), 1 - 1e-12)])
    first, last = Canvas(samples, 1, None).crops(60, ends)
    assert np.array_equal(first, last)


def test_the_worst_tiles_speak_for_the_image() -> None:
    values = np.array([[1.0, 9], [2, 0], [3, 0], [4, 0], [5, 0], [6, 0]])
    assert WORST == 4
    np.testing.assert_allclose(worst(values), [4.5, 2.25])
    np.testing.assert_allclose(worst(values[:1]), values[0])


def test_memory_does_not_grow_with_the_number_of_tiles() -> None:
    canvas = Canvas(np.zeros((1500, 1500), np.uint8), 1, None)
    grid = Grid.over(1500, 1500, 32)
    blender = Blender(grid, 1)
    tracemalloc.start()
    for batch in grid.cut(canvas, 64):
        blender.add(batch)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    # All tiles as float32 would be 36 MB; so would four float64 copies of the image.
    assert peak < 4e6
