"""Every image that is called anomalous shows where."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from anoscan.cli.app import app
from anoscan.core.arrays import Floats
from anoscan.core.results import ImageScore
from anoscan.detector import Detector
from anoscan.images import tiles
from anoscan.images.canvas import Canvas
from anoscan.images.decode import Decoded
from anoscan.images.files import ImageFile
from anoscan.images.roi import Cover, Roi
from anoscan.model import regions
from anoscan.model.judge import Judge, Levels
from anoscan.scoring.choices import ScoreRequest
from tests.conftest import Digits

PEAKS = np.array([1.0, 4.5, 6.0])


def decoded_of(height: int, width: int, orientation: int = 1, roi: Roi | None = None) -> Decoded:
    cover = None if roi is None else Cover(roi, np.zeros((1, 1, 1), np.float32))
    canvas = Canvas(np.zeros((height, width), np.uint8), 1, None, cover)
    stored = (width, height) if orientation < 5 else (height, width)
    file = ImageFile("a.png", Path("a.png"), "a.png")
    return Decoded(file, canvas, *stored, orientation, b"", None)  # type: ignore[arg-type]


def hill(height: int, width: int, row: int, column: int, radius: float) -> Floats:
    """A cone of height 2 on flat ground of height -1."""
    y, x = np.mgrid[:height, :width]
    distance = np.hypot(y - row, x - column)
    cone: Floats = np.maximum(2 - 3 * distance / radius, -1).astype(np.float32)
    return cone


def box(region: Any) -> tuple[int, int, int, int]:
    return region.x, region.y, region.width, region.height


def test_the_hottest_place_is_what_lies_above_half_way_from_the_median_to_the_peak() -> None:
    decoded = decoded_of(80, 120)
    (found,) = regions.hottest(decoded, hill(80, 120, 20, 50, 10), PEAKS)
    assert box(found) == (45, 15, 11, 11)  # half of the radius of 10 in each direction
    assert found.area == (np.hypot(*np.mgrid[-5:6, -5:6]) <= 5).sum()
    assert (found.score, found.p_value, found.below_level) == (2.0, 0.75, True)


@pytest.mark.parametrize("shape", [(1, 1), (2, 3), (4, 4), (5, 9), (64, 100), (1200, 700)])
def test_the_hottest_place_never_covers_most_of_an_image(shape: tuple[int, int]) -> None:
    slope = np.linspace(0, 1, shape[0] * shape[1], dtype=np.float32).reshape(shape)
    for values in (slope, slope[::-1, ::-1], np.zeros(shape, np.float32)):
        (found,) = regions.hottest(decoded_of(*shape), values, PEAKS)
        assert found.width <= (shape[1] + 1) / 2
        assert found.height <= (shape[0] + 1) / 2


def test_the_hottest_place_turns_with_the_image() -> None:
    peak = np.zeros((40, 20), np.float32)
    peak[30, 5] = 1
    assert box(regions.hottest(decoded_of(40, 20), peak, PEAKS)[0]) == (5, 30, 1, 1)
    assert box(regions.hottest(decoded_of(40, 20, 6), peak, PEAKS)[0]) == (30, 14, 1, 1)


def test_the_hottest_place_lies_in_the_region_of_interest_even_where_all_of_it_is_calm() -> None:
    inside = np.zeros((40, 40), bool)
    inside[:, 25:] = True
    decoded = decoded_of(40, 40, roi=Roi.of(inside))
    calm = decoded.canvas.counted(hill(40, 40, 10, 24, 12) - 5)  # 0 outside, below 0 inside
    (found,) = regions.hottest(decoded, calm, PEAKS)
    assert found.x >= 25
    assert found.y <= 10 < found.y + found.height
    assert found.score < 0


def test_a_map_that_was_not_made_has_no_hottest_place() -> None:
    assert regions.hottest(decoded_of(8, 8), np.zeros((0, 0), np.float32), PEAKS) == ()


def every_image_is(anomalous: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Put the level of images far below or above all scores, and that of regions above all maps."""
    real = Judge.levels

    def levels(self: Judge, request: ScoreRequest) -> Levels:
        image = -1e9 if anomalous else 1e9
        return dataclasses.replace(real(self, request), image=image, region=1e9)

    monkeypatch.setattr(Judge, "levels", levels)


def scored(detector: Detector, folder: Path) -> list[ImageScore]:
    return list(detector.score(folder).images)


def test_an_anomalous_image_below_the_level_of_regions_has_its_hottest_place_and_others_none(
    trained: Detector, few: Digits, monkeypatch: pytest.MonkeyPatch
) -> None:
    every_image_is(True, monkeypatch)
    found = scored(trained, few.queries)
    assert [len(image.regions) for image in found] == [1] * len(found)
    assert all(image.regions[0].below_level for image in found)
    every_image_is(False, monkeypatch)
    assert not any(image.regions for image in scored(trained, few.queries))


def test_regions_above_the_level_are_not_marked_and_keep_the_hottest_place_away(
    trained: Detector, digits: Digits
) -> None:
    found = trained.score(digits.queries, false_alarm_rate=0.3).images
    anomalous = [image for image in found if image.verdict == "anomalous"]
    assert all(image.regions for image in anomalous)
    assert {region.below_level for image in anomalous for region in image.regions} == {False, True}
    for image in anomalous:
        marked = [region.below_level for region in image.regions]
        assert marked == [True] or not any(marked)


@pytest.fixture(scope="module")
def of_patches(tmp_path_factory: pytest.TempPathFactory) -> tuple[Detector, Path]:
    """A detector of patches, and the folder of noise that it learned."""
    folder, rng = tmp_path_factory.mktemp("noise"), np.random.default_rng(0)
    for number in range(20):
        noise = rng.integers(0, 256, (96, 128)).astype(np.uint8)
        Image.fromarray(noise).save(folder / f"{number:02}.png")
    path = tmp_path_factory.mktemp("model") / "m.safetensors"
    return Detector.train(
        folder, path=path, patches=40, patch_size=16, images_shown=64, encoder_images_shown=32,
        rotation_images_shown=32, batch_size=16, width=4, latent_dim=4,
    ), folder  # fmt: skip


@pytest.mark.parametrize("largest", [4096, 40])
def test_large_images_measured_in_tiles_show_where_too(
    largest: int, of_patches: tuple[Detector, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tiles, "LARGEST_MAP", largest)
    every_image_is(True, monkeypatch)
    for image in scored(*of_patches):
        (region,) = image.regions
        assert region.below_level
        assert region.width <= 66
        assert region.x + region.width <= 128
        assert region.y + region.height <= 96


def test_streamed_lines_say_which_regions_are_below_the_level(
    model_file: Path,
    few: Digits,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    every_image_is(True, monkeypatch)
    arguments = ["score", str(few.queries), "--model", str(model_file), "--jsonl"]
    with pytest.raises(SystemExit):
        app(arguments)
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert rows
    for row in rows:
        (region,) = row["regions"]
        assert list(region)[-2:] == ["p_value", "below_level"]
        assert region["below_level"] is True
