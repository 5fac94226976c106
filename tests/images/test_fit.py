"""Images that are not square: what networks see of them, and the way back to stored pixels."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from anoscan.core.errors import InputError, UsageError
from anoscan.detector import Detector
from anoscan.images.decode import UPRIGHT, Decoded, ImageRule, decode
from anoscan.images.files import ImageFile
from anoscan.images.fit import Fit
from anoscan.images.roi import Cover, Roi
from anoscan.model import regions
from anoscan.report.map_files import MapFiles
from anoscan.report.views import own_canvas

RNG = np.random.default_rng(0)
EXIF_ORIENTATION = 0x0112
PEAKS = np.zeros(9)


def rule_of(fit: str, size: int = 32, **more: Any) -> ImageRule:
    return ImageRule(**{"size": size, "channels": 1, "window": None, "fit": fit} | more)


def saved(file: Path, samples: np.ndarray[Any, Any], orientation: int = 1) -> ImageFile:
    picture = Image.fromarray(samples)
    picture.getexif()[EXIF_ORIENTATION] = orientation
    picture.save(file, exif=picture.getexif())
    return ImageFile(file.name, file, file.name)


def spotted(height: int, width: int, y: int, x: int, side: int = 8) -> np.ndarray[Any, Any]:
    samples = np.full((height, width), 100, np.uint8)
    samples[y : y + side, x : x + side] = 250
    return samples


def found_in(decoded: Decoded) -> list[tuple[int, int, int, int]]:
    """Boxes of what differs from the background, as regions are found in a map of the canvas."""
    seen = np.abs(decoded.pixels[0] - (100 / 127.5 - 1))
    places = regions.find(decoded, decoded.canvas.counted(seen), 0.3, PEAKS)
    return [(place.x, place.y, place.width, place.height) for place in places]


# --- what networks see --------------------------------------------------------------------------


def test_a_padded_image_keeps_its_proportions_and_its_pixels(tmp_path: Path) -> None:
    samples = RNG.integers(0, 256, (16, 32), np.uint8)
    decoded = decode(saved(tmp_path / "a.png", samples), rule_of("pad"))
    canvas = np.asarray(decoded.canvas.samples)
    np.testing.assert_array_equal(canvas[8:24], samples)
    padding = np.concatenate([canvas[:8], canvas[24:]])
    assert set(padding.ravel().tolist()) == {int(np.median(samples))}


def test_the_middle_of_a_cropped_image_is_seen_alone(tmp_path: Path) -> None:
    samples = RNG.integers(0, 256, (32, 70), np.uint8)
    decoded = decode(saved(tmp_path / "a.png", samples), rule_of("crop"))
    np.testing.assert_array_equal(decoded.canvas.samples, samples[:, 19:51])


@pytest.mark.parametrize("fit", ["pad", "crop"])
def test_a_square_image_is_the_same_in_every_fit(tmp_path: Path, fit: str) -> None:
    image = saved(tmp_path / "a.png", RNG.integers(0, 256, (40, 40), np.uint8))
    plain, fitted = decode(image, rule_of("stretch")), decode(image, rule_of(fit))
    np.testing.assert_array_equal(plain.pixels, fitted.pixels)
    assert fitted.canvas.fit is None


def test_padding_has_the_median_of_each_colour_and_of_deep_samples(tmp_path: Path) -> None:
    colours = RNG.integers(0, 256, (16, 32, 3), np.uint8)
    image = saved(tmp_path / "a.png", colours)
    canvas = np.asarray(decode(image, rule_of("pad", channels=3)).canvas.samples)
    expected = np.median(colours.reshape(-1, 3), axis=0).astype(int)
    np.testing.assert_array_equal(canvas[0, 0], expected)
    deep = RNG.integers(0, 4000, (32, 16), np.uint16)
    rule = rule_of("pad", window=(0.0, 4000.0))
    samples = np.asarray(decode(saved(tmp_path / "b.png", deep), rule).canvas.samples)
    np.testing.assert_array_equal(samples[:, 8:24], deep)
    assert samples[0, 0] == int(np.median(deep))


def test_padding_changes_neither_brightness_nor_sharpness(tmp_path: Path) -> None:
    samples = RNG.integers(0, 256, (16, 32), np.uint8)
    image = saved(tmp_path / "a.png", samples)
    padded = decode(image, rule_of("pad")).look
    assert padded.brightness == pytest.approx(samples.mean() / 255, abs=0.01)
    square = saved(tmp_path / "b.png", np.concatenate([samples, samples[::-1]]))
    assert padded.sharpness == pytest.approx(decode(square, rule_of("pad")).look.sharpness, abs=0.1)


def test_an_image_is_too_long_to_be_cropped_but_not_to_be_padded(tmp_path: Path) -> None:
    image = saved(tmp_path / "a.png", RNG.integers(0, 256, (4, 100), np.uint8))
    with pytest.raises(InputError, match="is 100x4 pixels: too long"):
        decode(image, rule_of("crop"))
    assert decode(image, rule_of("pad")).canvas.counted(np.ones((32, 32))).shape == (2, 32)


# --- the way back -------------------------------------------------------------------------------


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("fit", ["stretch", "pad", "crop"])
@pytest.mark.parametrize("shape", [(64, 128), (128, 64)])
def test_regions_are_in_pixels_of_the_stored_image(
    tmp_path: Path, orientation: int, fit: str, shape: tuple[int, int]
) -> None:
    # The spot is as far from the middle as a crop allows, in no symmetric place.
    y, x = (44, 72) if shape[0] < shape[1] else (72, 44)
    image = saved(tmp_path / "a.png", spotted(*shape, y, x), orientation)
    (box,) = found_in(decode(image, rule_of(fit)))
    assert box[0] <= x
    assert box[1] <= y
    assert x + 8 <= box[0] + box[2] <= x + 8 + 8
    assert y + 8 <= box[1] + box[3] <= y + 8 + 8
    assert box[2] <= 16
    assert box[3] <= 16


def test_regions_of_any_proportions_are_where_their_spot_is(tmp_path: Path) -> None:
    for height, width in [(37, 91), (100, 61), (33, 500), (300, 47)]:
        for fit in ("pad", "crop"):
            y, x = (height - 8) // 2 + 3, (width - 8) // 2 - 5
            decoded = decode(
                saved(tmp_path / "a.png", spotted(height, width, y, x)), rule_of(fit, 64)
            )
            (box,) = found_in(decoded)
            cell = max(height, width) / 64 if fit == "pad" else min(height, width) / 64
            slack = 2 * cell + 1
            for start, length, at in ((box[0], box[2], x), (box[1], box[3], y)):
                assert abs(start + length / 2 - (at + 4)) <= slack, (height, width, fit)


def test_no_region_lies_in_padding_or_in_what_is_cropped(tmp_path: Path) -> None:
    samples = RNG.integers(0, 256, (20, 90), np.uint8)
    everywhere = np.ones((32, 32), np.float32)
    for fit, x, width in (("pad", 0, 90), ("crop", 35, 20)):
        decoded = decode(saved(tmp_path / "a.png", samples), rule_of(fit))
        counted = decoded.canvas.counted(everywhere)
        (region,) = regions.find(decoded, counted, 0.5, PEAKS)
        assert (region.y, region.height) == (0, 20)
        assert region.x == pytest.approx(x, abs=1)
        assert region.width == pytest.approx(width, abs=2)
        # Without a place above the level, the hottest one is not outside either.
        (hottest,) = regions.hottest(decoded, counted - 2, PEAKS)
        assert x - 1 <= hottest.x <= hottest.x + hottest.width <= x + width + 1


def test_a_region_of_interest_lies_over_the_image_and_not_over_the_square(tmp_path: Path) -> None:
    inside = np.zeros((64, 128), np.bool_)
    inside[:, :64] = True  # the left half counts
    roi = Roi.of(inside)
    first, second = (RNG.integers(0, 256, (64, 128), np.uint8) for _ in range(2))
    second[:, :64] = first[:, :64]
    for fit, left in (("pad", 0), ("crop", 32)):
        rule = rule_of(fit, roi=roi)
        images = [decode(saved(tmp_path / "a.png", x), rule) for x in (first, second)]
        np.testing.assert_array_equal(images[0].pixels, images[1].pixels)
        (region,) = regions.find(images[0], images[0].canvas.counted(np.ones((32, 32))), 0.5, PEAKS)
        assert (region.x, region.y, region.width, region.height) == (left, 0, 64 - left, 64)


def test_a_cover_of_queries_lies_on_the_square_as_the_mean_image_does(tmp_path: Path) -> None:
    fill = RNG.uniform(-1, 1, (1, 32, 32)).astype(np.float32)
    inside = np.zeros((16, 32), np.bool_)
    inside[:, :16] = True
    image = saved(tmp_path / "a.png", RNG.integers(0, 256, (16, 32), np.uint8))
    pixels = decode(image, rule_of("pad"), Cover(Roi.of(inside), fill)).pixels
    np.testing.assert_array_equal(pixels[:, 8:24, 16:], fill[:, 8:24, 16:])
    padding = np.concatenate([pixels[:, :8], pixels[:, 24:]])
    assert len(np.unique(padding)) == 1


def test_what_is_cropped_is_drawn_as_outside(tmp_path: Path) -> None:
    image = saved(tmp_path / "a.png", RNG.integers(0, 256, (40, 100), np.uint8))
    rule = rule_of("crop")
    decoded = decode(image, rule)
    for canvas in (own_canvas(decoded, rule), decoded.canvas.image()):
        drawn = canvas.whole()[0]
        third = 3 * drawn.shape[1] // 10
        assert drawn.shape[1] > 2 * drawn.shape[0]
        assert not drawn[:, : third - 1].any()
        assert not drawn[:, 1 - third :].any()
        assert drawn[:, third + 1 : -third - 1].std() > 0.1


@pytest.mark.parametrize("orientation", [1, 6])
def test_what_was_seen_lies_over_the_upright_image(tmp_path: Path, orientation: int) -> None:
    samples = RNG.integers(0, 256, (16, 32), np.uint8)
    decoded = decode(saved(tmp_path / "a.png", samples, orientation), rule_of("pad"))
    upright = Image.fromarray(samples)
    if orientation != 1:
        upright = upright.transpose(UPRIGHT[orientation])
    np.testing.assert_array_equal(decoded.canvas.image().samples, np.asarray(upright))


# --- the rule and the settings ------------------------------------------------------------------


def test_the_fit_is_kept_in_the_rule_and_an_older_rule_stretches() -> None:
    for fit in ("stretch", "pad", "crop"):
        rule = rule_of(fit)
        assert ImageRule.from_dict(rule.to_dict()) == rule
    older = rule_of("stretch").to_dict()
    assert "fit" not in older
    assert ImageRule.from_dict(older).fit == "stretch"
    for values in (
        older | {"fit": "fill"},
        older | {"fit": 1},
        older | {"fit": "pad", "patch": 40},
    ):
        with pytest.raises(ValueError, match="fit must be one of"):
            ImageRule.from_dict(values)


def test_a_fit_of_no_name_or_of_patches_is_refused() -> None:
    from anoscan.core.config import TrainConfig

    with pytest.raises(UsageError, match="--fit must be one of stretch, pad, crop"):
        TrainConfig(fit="squash")
    with pytest.raises(UsageError, match="does not go with --patches"):
        TrainConfig(fit="pad", patches=100)
    assert "fit" not in TrainConfig().to_dict()
    assert TrainConfig.from_dict(TrainConfig(fit="crop").to_dict()).fit == "crop"


def test_the_cells_of_a_fit_are_shares_of_the_image() -> None:
    fit = Fit.of("pad", (30, 40), 64)
    assert fit == Fit(48, 64, 64)
    assert Fit.of("crop", (30, 40), 64) == Fit(64, 85, 64)
    assert fit is not None
    square = fit.on_square(np.arange(48 * 64).reshape(48, 64), -1)
    np.testing.assert_array_equal(fit.of_square(square), np.arange(48 * 64).reshape(48, 64))
    assert (square[:8] == -1).all()
    assert (square[56:] == -1).all()


# --- a whole training ---------------------------------------------------------------------------


@pytest.mark.parametrize("fit", ["pad", "crop"])
def test_training_and_scoring_follow_the_fit(
    tmp_path: Path, quick: dict[str, int], fit: str
) -> None:
    normal = tmp_path / "normal"
    normal.mkdir()
    for number in range(60):  # of two proportions
        shape = (24, 48) if number % 2 else (32, 40)
        samples = RNG.normal(120, 6, shape).round().astype(np.uint8)
        saved(normal / f"{number}.png", samples)
    detector = Detector.train(normal, fit=fit, size=32, workers=1, **quick)
    model = detector.model
    assert model.rule.fit == model.config.fit == fit
    odd = RNG.normal(120, 6, (24, 48)).round().astype(np.uint8)
    odd[10:16, 26:32] = 255
    queries = tmp_path / "queries"
    queries.mkdir()
    saved(queries / "odd.png", odd)
    shutil.copy(normal / "1.png", queries / "normal.png")
    maps = MapFiles(tmp_path / "maps", ("npy", "overlay", "side-by-side"))
    again = Detector.load(detector.reference.path, workers=1)
    report = again.score(queries, maps=maps, residuals=tmp_path / "pictures")
    first = report.images[0]
    assert first.path.endswith("odd.png")
    assert first.regions
    best = first.regions[0]
    assert best.x < 32
    assert best.x + best.width > 26
    assert best.y < 16
    assert best.y + best.height > 10
    assert first.maps is not None
    found = np.load(first.maps["npy"])
    assert found.shape == (24, 48)
    y, x = np.unravel_index(found.argmax(), found.shape)
    assert 8 <= y < 18
    assert 24 <= x < 34
    if fit == "crop":
        assert not found[:, :11].any()
        assert not found[:, -11:].any()


def test_held_out_images_of_different_proportions_count_where_they_are(tmp_path: Path) -> None:
    from anoscan.core.config import TrainConfig
    from anoscan.dataset.material import Material

    files = [
        saved(
            tmp_path / f"{n}.png", RNG.integers(0, 256, (16, 32) if n % 2 else (32, 16), np.uint8)
        )
        for n in range(20)
    ]
    material = Material.load(
        files, rule_of("pad"), TrainConfig(), workers=1, on_progress=lambda *_: None
    )
    wide = material.inside_of(np.array([1, 3]))
    assert wide is not None
    assert wide.shape == (32, 32)
    assert wide[8:24].all()
    assert not wide[:8].any()
    both = material.inside_of(np.array([0, 1]))
    assert both is not None
    np.testing.assert_array_equal(both, np.stack([wide.T, wide]))
    stretched = dataclasses.replace(material, rule=rule_of("stretch"))
    assert stretched.inside_of(np.array([0, 1])) is None
