"""Regions of interest: what is outside them counts nowhere."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from anoscan.cli import tables
from anoscan.core.errors import InputError
from anoscan.detector import Detector
from anoscan.images import masks
from anoscan.images.decode import ImageRule, decode
from anoscan.images.files import ImageFile
from anoscan.images.roi import Cover, Roi
from tests.conftest import Digits

RNG = np.random.default_rng(0)
INSIDE = np.zeros((40, 40), np.bool_)
INSIDE[10:30, 5:35] = True


def saved(file: Path, samples: np.ndarray[Any, Any], **options: Any) -> ImageFile:
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(samples).save(file, **options)
    return ImageFile(file.name, file, file.name)


def mask_file(folder: Path, inside: np.ndarray[Any, Any]) -> Path:
    return saved(folder / "mask.png", inside.astype(np.uint8) * 255).file


# --- the region ---------------------------------------------------------------------------------


def test_a_region_survives_its_json_form_and_lies_over_images_of_any_size() -> None:
    roi = Roi.of(INSIDE)
    assert Roi.from_dict(roi.to_dict()) == roi
    np.testing.assert_array_equal(roi.part((0, 0), (40, 40), (40, 40)), INSIDE)
    large = roi.part((0, 0), (80, 80), (80, 80))
    np.testing.assert_array_equal(large, INSIDE.repeat(2, 0).repeat(2, 1))
    np.testing.assert_array_equal(roi.part((16, 8), (30, 50), (80, 80)), large[16:46, 8:58])


def test_the_bits_of_a_region_are_not_shown_to_people() -> None:
    assert tables._plain(Roi.of(INSIDE).to_dict()) == "a mask of 40x40"


def test_a_large_mask_is_thinned_out() -> None:
    roi = Roi.of(INSIDE.repeat(50, 0).repeat(50, 1))
    assert (roi.height, roi.width) == (512, 512)
    small = roi.part((0, 0), (40, 40), (40, 40))
    assert (small != INSIDE).mean() < 0.02


GOOD = Roi.of(INSIDE).to_dict()


@pytest.mark.parametrize(
    "values",
    [
        *(None, [], {}, GOOD | {"more": 1}, GOOD | {"height": 0}, GOOD | {"width": 10**9}),
        *(GOOD | {"height": True}, GOOD | {"bits": "!"}, GOOD | {"bits": 3}, GOOD | {"bits": ""}),
        *(GOOD | {"width": 41}, {"height": 1, "width": 8, "bits": "AA=="}),
    ],
)
def test_a_region_of_hostile_values_is_refused(values: Any) -> None:
    with pytest.raises(ValueError, match="region of interest"):
        Roi.from_dict(values)
    rule = {"size": 16, "channels": 1, "window": None}
    if values is not None:
        with pytest.raises(ValueError, match="region of interest"):
            ImageRule.from_dict(rule | {"roi": values})


def test_a_rule_with_a_region_survives_its_json_form_and_one_without_has_no_trace_of_it() -> None:
    rule = ImageRule(size=16, channels=1, window=None, roi=Roi.of(INSIDE))
    assert ImageRule.from_dict(rule.to_dict()) == rule
    assert "roi" not in dataclasses.replace(rule, roi=None).to_dict()


# --- decoding under it --------------------------------------------------------------------------


@pytest.mark.parametrize("size", [16, 40, 64])
@pytest.mark.parametrize("kind", ["grey", "colour", "deep", "turned", "patches"])
def test_what_is_outside_does_not_change_a_pixel(tmp_path: Path, size: int, kind: str) -> None:
    shape = (40, 40, 3) if kind == "colour" else (40, 40)
    first = RNG.integers(0, 256, shape, np.uint8)
    other = RNG.integers(0, 256, shape, np.uint8)
    inside = INSIDE[..., None] if kind == "colour" else INSIDE
    second = np.where(inside, first, other)
    options: dict[str, Any] = {}
    if kind == "turned":  # stored turned, so that it is upright as above
        exif = Image.Exif()
        exif[274] = 6
        first, second = np.rot90(first), np.rot90(second)
        options = {"exif": exif}
    if kind == "deep":
        first, second = first.astype(np.uint16) * 9, second.astype(np.uint16) * 9
    rule = ImageRule(
        size=size,
        channels=3 if kind == "colour" else 1,
        window=(0, 2000) if kind == "deep" else None,
        patch=max(size, 20) if kind == "patches" and size <= 20 else None,
        roi=Roi.of(INSIDE),
    )
    pixels = [
        decode(saved(tmp_path / f"{place}.png", np.ascontiguousarray(x), **options), rule).pixels
        for place, x in enumerate((first, second))
    ]
    np.testing.assert_array_equal(pixels[0], pixels[1])
    height, width = pixels[0].shape[1:]
    outside = ~Roi.of(INSIDE).part((0, 0), (height, width), (height, width))
    assert (pixels[0][:, outside] == 0).all()
    assert pixels[0][:, ~outside].std() > 0.1


def test_inside_nothing_changes(tmp_path: Path) -> None:
    image = saved(tmp_path / "x.png", RNG.integers(0, 256, (40, 40), np.uint8))
    rule = ImageRule(size=40, channels=1, window=None)
    plain = decode(image, rule).pixels
    covered = decode(image, dataclasses.replace(rule, roi=Roi.of(INSIDE))).pixels
    np.testing.assert_array_equal(plain[:, INSIDE], covered[:, INSIDE])


def test_a_cover_fills_with_its_own_image(tmp_path: Path) -> None:
    image = saved(tmp_path / "x.png", RNG.integers(0, 256, (40, 40), np.uint8))
    fill = RNG.uniform(-1, 1, (1, 20, 20)).astype(np.float32)
    rule = ImageRule(size=20, channels=1, window=None)
    pixels = decode(image, rule, Cover(Roi.of(INSIDE), fill)).pixels
    outside = ~Roi.of(INSIDE).part((0, 0), (20, 20), (20, 20))
    np.testing.assert_array_equal(pixels[:, outside], fill[:, outside])


# --- masks and borders --------------------------------------------------------------------------


def test_masks_of_any_depth_are_read_and_black_ones_refused(tmp_path: Path) -> None:
    for name, samples in {
        "a.png": INSIDE.astype(np.uint8),
        "b.png": INSIDE.astype(np.uint8)[..., None].repeat(3, 2) * 200,
        "c.tif": INSIDE.astype(np.uint16) * 3,
        "d.jpg": INSIDE.astype(np.uint8) * 255,
    }.items():
        assert masks.read(saved(tmp_path / name, samples).file) == Roi.of(INSIDE), name
    with pytest.raises(InputError, match=r"black\.png is black: nothing would count"):
        masks.read(saved(tmp_path / "black.png", np.zeros((9, 9), np.uint8)).file)
    with pytest.raises(InputError, match=r"--roi .*gone\.png: file does not exist"):
        masks.read(tmp_path / "gone.png")


def framed(border: tuple[int, int, int, int], size: tuple[int, int], level: int = 0) -> Any:
    top, left, bottom, right = border
    picture = RNG.integers(40, 256, size, np.uint8)
    frame = np.full(size, level, np.uint8)
    frame[top : size[0] - bottom, left : size[1] - right] = picture[
        top : size[0] - bottom, left : size[1] - right
    ]
    return frame


def borders(files: list[ImageFile]) -> Roi | None:
    return masks.within_borders(files, workers=1, seed=0)


def test_borders_that_all_images_share_are_left_out(tmp_path: Path) -> None:
    files = [
        saved(tmp_path / f"{n}.png", framed((8, 3, 4, 0), (50, 60), level=7 * n)) for n in range(3)
    ]
    files.append(saved(tmp_path / "more.png", framed((12, 9, 5, 6), (50, 60))))
    files.append(saved(tmp_path / "blank.png", np.zeros((50, 60), np.uint8)))
    roi = borders(files)
    assert roi is not None
    expected = np.zeros((50, 60), np.bool_)
    expected[8:46, 3:60] = True
    np.testing.assert_array_equal(roi.part((0, 0), (50, 60), (50, 60)), expected)


def test_borders_of_images_of_several_sizes_are_compared_by_share(tmp_path: Path) -> None:
    files = [
        saved(tmp_path / "a.png", framed((10, 0, 10, 0), (100, 100))),
        saved(tmp_path / "b.png", framed((40, 0, 20, 0), (200, 160))),
    ]
    roi = borders(files)
    assert roi is not None
    found = roi.part((0, 0), (100, 100), (100, 100))
    assert found.any(1).tolist() == [False] * 10 + [True] * 80 + [False] * 10


def test_one_image_without_a_border_is_enough_to_keep_it(tmp_path: Path) -> None:
    files = [saved(tmp_path / f"{n}.png", framed((8, 8, 8, 8), (50, 50))) for n in range(3)]
    assert borders(files) is not None
    assert borders([*files, saved(tmp_path / "x.png", framed((0, 0, 0, 0), (50, 50)))]) is None
    assert borders([]) is None


# --- training and scoring -----------------------------------------------------------------------


@pytest.fixture
def spoiled(few: Digits, tmp_path: Path) -> Path:
    """Queries, each beside a copy that is white in the two right columns."""
    for file in sorted(few.queries.iterdir())[:6]:
        shutil.copy(file, tmp_path / file.name)
        samples = np.array(Image.open(file))
        samples[:, 6:] = 255
        Image.fromarray(samples).save(tmp_path / f"{file.stem}-spoiled.png")
    return tmp_path


LEFT = np.ones((8, 8), np.bool_)
LEFT[:, 6:] = False


def pairs(detector: Detector, folder: Path) -> list[tuple[Any, Any]]:
    found = {Path(image.path).stem: image for image in detector.score(folder).images}
    return [(found[name], found[f"{name}-spoiled"]) for name in found if f"{name}-spoiled" in found]


def test_what_is_outside_a_model_s_region_changes_no_score(
    few: Digits, spoiled: Path, tmp_path_factory: pytest.TempPathFactory, quick: dict[str, int]
) -> None:
    folder = tmp_path_factory.mktemp("roi")
    mask = mask_file(folder, LEFT)
    trained = Detector.train(few.normal, path=folder / "m.safetensors", roi=mask, **quick)
    assert trained.model.rule.roi == Roi.of(LEFT)
    assert trained.model.maps.peaks is not None
    np.testing.assert_array_equal(trained.model.calibration.region_peaks, trained.model.maps.peaks)
    mask.unlink()
    detector = Detector.load(folder / "m.safetensors")
    found = pairs(detector, spoiled)
    assert len(found) == 6
    for plain, copy in found:
        assert copy.score == pytest.approx(plain.score, abs=1e-6)
        assert all(region.x + region.width <= 6 for region in copy.regions)
    again = Detector.load(folder / "m.safetensors", roi=mask_file(folder, LEFT))
    assert pairs(again, spoiled) == found
    for each in (detector, again):
        assert "--roi" not in (each.threshold().warning or "")


def test_a_region_given_to_score_hides_the_rest_and_says_what_that_means(
    model_file: Path, spoiled: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    mask = mask_file(tmp_path_factory.mktemp("mask"), LEFT)
    plain = pairs(Detector.load(model_file), spoiled)
    assert all(copy.score > image.score + 0.1 for image, copy in plain)
    detector = Detector.load(model_file, roi=mask)
    for image, copy in pairs(detector, spoiled):
        assert copy.score == pytest.approx(image.score, abs=1e-6)
        assert all(region.x + region.width <= 6 for region in copy.regions)
    assert "--roi" in (detector.threshold().warning or "")
