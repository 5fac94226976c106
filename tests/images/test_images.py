from __future__ import annotations

import itertools
import os
import random
import shutil
import struct
import subprocess
import sys
import time
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageDraw, TiffImagePlugin

from anoscan.core.config import TrainConfig
from anoscan.core.errors import InputError
from anoscan.core.results import Skipped
from anoscan.dataset import inspection
from anoscan.dataset.image_array import ImageArray
from anoscan.dataset.inspection import Inspection, _look, _samples, inspect
from anoscan.images import decode as decode_module
from anoscan.images import resampling
from anoscan.images.decode import Decoded, ImageRule, decode, decode_all, shallow_image, stored_box
from anoscan.images.files import ImageFile, find
from anoscan.images.formats import picture, pillow
from anoscan.images.roi import Roi

GREY = ImageRule(size=32, channels=1, window=None)
COLOUR = ImageRule(size=32, channels=3, window=None)
TRANSPOSES = dict(
    zip(
        range(2, 9),
        [
            Image.Transpose.FLIP_LEFT_RIGHT,
            Image.Transpose.ROTATE_180,
            Image.Transpose.FLIP_TOP_BOTTOM,
            Image.Transpose.TRANSPOSE,
            Image.Transpose.ROTATE_270,
            Image.Transpose.TRANSVERSE,
            Image.Transpose.ROTATE_90,
        ],
        strict=True,
    )
)


def image_file(file: Path) -> ImageFile:
    return ImageFile(str(file), file, file.name)


def ramp(side: int = 32) -> np.ndarray[Any, np.dtype[np.uint8]]:
    across, down = np.meshgrid(np.linspace(0, 255, side), np.linspace(0, 255, side))
    return ((across * 2 + down) / 3).astype(np.uint8)


def colours(side: int = 32) -> np.ndarray[Any, np.dtype[np.uint8]]:
    return np.stack([ramp(side), ramp(side)[::-1], 255 - ramp(side)], axis=2)


def saved(file: Path, image: Image.Image | np.ndarray[Any, Any], **options: Any) -> ImageFile:
    file.parent.mkdir(parents=True, exist_ok=True)
    picture = image if isinstance(image, Image.Image) else Image.fromarray(image)
    picture.save(file, **options)
    return image_file(file)


def levels(decoded: Decoded) -> np.ndarray[Any, Any]:
    return np.round((decoded.pixels + 1) * 127.5)


def reason(image: ImageFile, rule: ImageRule = GREY) -> str:
    with pytest.raises(InputError) as caught:
        decode(image, rule)
    return caught.value.message


# --- find ---------------------------------------------------------------------------------------


def test_a_folder_is_searched_recursively_in_sorted_order_with_paths_as_given(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ["b.PNG", "a/z.JpEg", "a/b/c.tif", "c.pgm"]:
        saved(tmp_path / "set" / name, ramp())
    monkeypatch.chdir(tmp_path)

    found = find(["./set/"])

    assert [image.inside for image in found] == ["a/b/c.tif", "a/z.JpEg", "b.PNG", "c.pgm"]
    assert [image.path for image in found] == [f"./set/{image.inside}" for image in found]
    assert all(image.file.samefile(image.path) for image in found)


def test_hidden_and_foreign_entries_of_a_folder_are_passed_over(tmp_path: Path) -> None:
    for name in ["good.png", ".hidden.png", ".git/x.png", "__MACOSX/x.png", "notes.txt"]:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    (tmp_path / "Thumbs.db").write_bytes(b"x")
    (tmp_path / "folder.png").mkdir()

    assert [image.inside for image in find([tmp_path])] == ["good.png"]


def test_a_file_given_by_itself_is_taken_whatever_it_is_called(tmp_path: Path) -> None:
    shutil.copy(saved(tmp_path / "a.png", ramp()).file, tmp_path / ".scan.dat")

    (found,) = find([tmp_path / ".scan.dat"])

    assert (found.path, found.inside) == (str(tmp_path / ".scan.dat"), ".scan.dat")
    assert decode(found, GREY).pixels.shape == (1, 32, 32)


def test_the_same_path_given_twice_is_found_once(tmp_path: Path) -> None:
    saved(tmp_path / "set/a.png", ramp())
    saved(tmp_path / "set/b.png", ramp())
    roundabout = tmp_path / "set" / ".." / "set" / "b.png"

    found = find([tmp_path / "set", roundabout, tmp_path / "set", tmp_path / "set/a.png"])

    assert [Path(image.path).name for image in found] == ["a.png", "b.png"]


def test_loops_of_links_end_and_a_folder_keeps_its_real_name(tmp_path: Path) -> None:
    saved(tmp_path / "real/a.png", ramp())
    (tmp_path / "real/loop").symlink_to(tmp_path)
    (tmp_path / "alias").symlink_to(tmp_path / "real")
    (tmp_path / "itself.png").symlink_to(tmp_path / "itself.png")
    (tmp_path / "dangling").symlink_to(tmp_path / "nothing")

    assert [image.inside for image in find([tmp_path])] == ["itself.png", "real/a.png"]
    assert reason(image_file(tmp_path / "itself.png"))


def test_a_linked_folder_outside_the_tree_is_read(tmp_path: Path) -> None:
    saved(tmp_path / "elsewhere/a.png", ramp())
    (tmp_path / "set").mkdir()
    (tmp_path / "set/link").symlink_to(tmp_path / "elsewhere")

    assert [image.inside for image in find([tmp_path / "set"])] == ["link/a.png"]


@pytest.mark.parametrize("path", ["missing.png", "missing/", "nul\0.png"])
def test_a_path_that_does_not_exist_is_an_error_that_names_it(tmp_path: Path, path: str) -> None:
    with pytest.raises(InputError, match=path.rstrip("/")):
        find([tmp_path / path])


def test_nothing_to_look_at_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(InputError, match="no images given"):
        find([])
    with pytest.raises(InputError, match="empty path"):
        find([""])
    with pytest.raises(InputError, match="no images in") as caught:
        find([tmp_path])
    assert "PNG" in (caught.value.hint or "")


@pytest.mark.parametrize(
    "name",
    [
        "with space [1] {2} 'q'.png",
        "line\nbreak.png",
        "\x1b[31mred.png",
        os.fsdecode(b"\xff\xe9.png"),
    ],
)
def test_odd_file_names_are_found_and_decoded(tmp_path: Path, name: str) -> None:
    saved(tmp_path / "plain.png", ramp()).file.rename(tmp_path / name)

    (found,) = find([tmp_path])

    assert found.inside == name
    np.testing.assert_array_equal(levels(decode(found, GREY))[0], ramp())


# --- decode: formats ----------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", ["png", "tif", "bmp", "gif", "pgm", "webp", "TIFF", "pnm"])
def test_lossless_grey_files_of_model_size_are_pixel_exact(tmp_path: Path, suffix: str) -> None:
    options = {"lossless": True} if suffix == "webp" else {}
    decoded = decode(saved(tmp_path / f"x.{suffix}", ramp(), **options), GREY)

    assert decoded.pixels.dtype == np.float32
    np.testing.assert_array_equal(levels(decoded)[0], ramp())
    assert (decoded.width, decoded.height, decoded.orientation) == (32, 32, 1)


@pytest.mark.parametrize("suffix", ["png", "tif", "bmp", "ppm", "webp"])
def test_lossless_colour_files_of_model_size_are_pixel_exact(tmp_path: Path, suffix: str) -> None:
    options = {"lossless": True} if suffix == "webp" else {}
    decoded = decode(saved(tmp_path / f"x.{suffix}", colours(), **options), COLOUR)

    np.testing.assert_array_equal(levels(decoded), colours().transpose(2, 0, 1))


def test_black_and_white_are_the_ends_of_the_range(tmp_path: Path) -> None:
    picture = np.array([[0, 255], [255, 0]], np.uint8).repeat(16, 0).repeat(16, 1)
    pixels = decode(saved(tmp_path / "x.png", picture), GREY).pixels

    assert (pixels.min(), pixels.max(), pixels[0, 0, 0]) == (-1, 1, -1)


def test_grey_files_fill_all_channels_of_a_colour_model(tmp_path: Path) -> None:
    for name, samples in {"a.png": ramp(), "b.png": ramp().astype(np.uint16) * 257}.items():
        decoded = decode(saved(tmp_path / name, samples), COLOUR)
        np.testing.assert_array_equal(levels(decoded), np.stack([ramp()] * 3))


def test_a_grey_model_sees_the_lightness_of_a_colour_file(tmp_path: Path) -> None:
    decoded = decode(saved(tmp_path / "x.png", colours()), GREY)

    expected = np.asarray(Image.fromarray(colours()).convert("L"))
    np.testing.assert_array_equal(levels(decoded)[0], expected)


@pytest.mark.parametrize(
    ("mode", "suffix"),
    [
        ("L", "jpg"),
        ("RGB", "jpeg"),
        ("CMYK", "jpg"),
        ("CMYK", "tif"),
        ("LAB", "tif"),
        ("P", "png"),
        ("P", "gif"),
        ("RGB", "webp"),
    ],
)
def test_other_colour_spaces_come_out_near_the_colours_put_in(
    tmp_path: Path, mode: str, suffix: str
) -> None:
    flat = Image.new("RGB", (32, 32), (200, 100, 40))
    stored = {
        "LAB": Image.new("LAB", (32, 32), (136, 164, 178)),  # the same colour
        "P": flat.quantize(2),
    }.get(mode) or flat.convert(mode)
    decoded = decode(saved(tmp_path / f"x.{suffix}", stored), COLOUR)
    grey = decode(image_file(tmp_path / f"x.{suffix}"), GREY)

    expected = np.asarray(flat.convert("L").convert("RGB") if mode == "L" else flat)[0, 0]
    np.testing.assert_allclose(levels(decoded)[:, 5, 5], expected, atol=14)
    np.testing.assert_allclose(levels(grey)[0, 5, 5], flat.convert("L").getpixel((0, 0)), atol=9)


@pytest.mark.parametrize(("mode", "channels"), [("RGBA", 3), ("LA", 1), ("RGBA", 1)])
def test_transparency_lies_over_black(tmp_path: Path, mode: str, channels: int) -> None:
    picture = Image.new("RGBA", (32, 32), (255, 255, 255, 0))
    ImageDraw.Draw(picture).rectangle((0, 0, 15, 31), fill=(255, 255, 255, 128))
    decoded = decode(
        saved(tmp_path / "x.png", picture.convert(mode)),
        ImageRule(size=32, channels=channels, window=None),
    )
    assert levels(decoded)[:, 3, 3].tolist() == [128] * channels
    assert levels(decoded)[:, 3, 30].tolist() == [0] * channels


def test_a_transparent_palette_entry_is_black(tmp_path: Path) -> None:
    picture = Image.new("P", (32, 32), 1)
    picture.putpalette([0, 0, 0, 250, 250, 250, 90, 90, 90])
    ImageDraw.Draw(picture).rectangle((0, 0, 15, 31), fill=2)
    for name, transparency in {"a.png": 1, "b.gif": 1, "c.png": b"\xff\x00\xff"}.items():
        decoded = decode(saved(tmp_path / name, picture, transparency=transparency), GREY)
        assert (levels(decoded)[0, 3, 3], levels(decoded)[0, 3, 30]) == (90, 0)


def test_one_bit_images_are_black_and_white(tmp_path: Path) -> None:
    picture = Image.fromarray(ramp() > 128)
    for suffix in ["png", "pbm", "tif"]:
        decoded = decode(saved(tmp_path / f"x.{suffix}", picture), GREY)
        np.testing.assert_array_equal(levels(decoded)[0], (ramp() > 128) * 255)


def test_only_the_first_frame_of_an_animation_counts(tmp_path: Path) -> None:
    first, second = Image.new("L", (32, 32), 50), Image.new("L", (32, 32), 200)
    file = saved(tmp_path / "x.gif", first, save_all=True, append_images=[second])
    assert np.unique(levels(decode(file, GREY))).tolist() == [50]
    assert find([file.file]) == [file]


@pytest.mark.parametrize("suffix", ["png", "tif", "pgm"])
def test_sixteen_bit_grey_keeps_more_levels_than_eight_bits_could(
    tmp_path: Path, suffix: str
) -> None:
    samples = np.arange(64 * 64, dtype=np.uint16).reshape(64, 64)  # 12 bits of 16
    rule = ImageRule(size=64, channels=1, window=(0, 4095))

    pixels = decode(saved(tmp_path / f"x.{suffix}", samples), rule).pixels

    assert len(np.unique(pixels)) == 4096
    np.testing.assert_allclose(pixels[0], samples / 4095 * 2 - 1, atol=1e-6)


def test_levels_survive_the_resizing_of_deep_images(tmp_path: Path) -> None:
    samples = np.linspace(0, 4095, 128 * 128).astype(np.uint16).reshape(128, 128)
    rule = ImageRule(size=64, channels=1, window=(0, 4095))

    pixels = decode(saved(tmp_path / "x.png", samples), rule).pixels

    assert len(np.unique(pixels)) > 2000
    assert abs(float(pixels.mean())) < 1e-3


def test_large_deep_images_are_resized_in_parts_that_meet_without_a_seam(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    samples = np.random.default_rng(0).integers(0, 4096, (301, 97)).astype(np.uint16)
    file = saved(tmp_path / "x.png", samples)
    for rule in (
        ImageRule(size=16, channels=1, window=(0, 4095)),
        ImageRule(size=16, channels=1, window=(0, 4095), patch=24),
    ):
        whole = decode(file, rule).pixels
        by_pillow = Image.fromarray(samples.astype(np.float32)).resize(
            whole.shape[:0:-1], Image.Resampling.BILINEAR
        )
        assert np.allclose(whole[0], np.asarray(by_pillow) / 2047.5 - 1, atol=1e-6)
        with monkeypatch.context() as little:
            little.setattr(resampling, "LARGEST", 2000)
            assert np.abs(decode(file, rule).pixels - whole).max() < 1e-5


def test_big_endian_deep_tiffs_are_read(tmp_path: Path) -> None:
    samples = ramp().astype(">u2") * 257
    (tmp_path / "x.tif").write_bytes(big_endian_tiff(samples))

    decoded = decode(image_file(tmp_path / "x.tif"), GREY)

    np.testing.assert_array_equal(levels(decoded)[0], ramp())


def big_endian_tiff(samples: np.ndarray[Any, Any]) -> bytes:
    height, width = samples.shape
    data = samples.tobytes()
    tags = [(256, width), (257, height), (258, 16), (259, 1), (262, 1), (273, 8)]
    tags += [(277, 1), (278, height), (279, len(data))]
    directory = struct.pack(">H", len(tags))
    for tag, value in tags:
        directory += struct.pack(">HHII", tag, 4, 1, value)
    return b"MM\0\x2a" + struct.pack(">I", 8 + len(data)) + data + directory + b"\0\0\0\0"


def test_what_is_brighter_than_the_window_stays_visible_up_to_three(tmp_path: Path) -> None:
    samples = np.full((32, 32), 1000, np.uint16)
    samples[0, 0], samples[0, 1], samples[0, 2] = 2000, 60_000, 500
    rule = ImageRule(size=32, channels=1, window=(500, 1500))

    pixels = decode(saved(tmp_path / "x.png", samples), rule).pixels

    assert pixels[0, 0, :4].tolist() == [2, 3, -1, 0]


def test_the_window_does_not_touch_eight_bit_images(tmp_path: Path) -> None:
    rule = ImageRule(size=32, channels=1, window=(500, 1500))
    np.testing.assert_array_equal(
        levels(decode(saved(tmp_path / "x.png", ramp()), rule))[0], ramp()
    )


def test_without_a_window_deep_queries_use_the_range_of_their_type(tmp_path: Path) -> None:
    whole = ramp().astype(np.int64) * 257
    signed = (whole * 65537 - 2**31).astype(np.int32)
    for samples in [whole.astype(np.uint16), signed, (ramp() / 255).astype(np.float32)]:
        decoded = decode(saved(tmp_path / "x.tif", samples), GREY)
        np.testing.assert_allclose((decoded.pixels[0] + 1) * 127.5, ramp(), atol=1e-3)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_float_image_with_a_hole_is_unreadable(tmp_path: Path, bad: float) -> None:
    samples = np.zeros((100, 100), np.float32)
    samples[50, 50] = bad
    assert reason(saved(tmp_path / "x.tif", samples)) == "has NaN or infinite pixels"


def test_other_shapes_are_stretched_to_the_square_with_antialiasing(tmp_path: Path) -> None:
    stripes = np.zeros((64, 256), np.uint8)
    stripes[:, ::2] = 255
    decoded = decode(saved(tmp_path / "x.png", stripes), GREY)

    assert decoded.pixels.shape == (1, 32, 32)
    assert (decoded.width, decoded.height) == (256, 64)
    assert np.abs(decoded.pixels[0, :, 2:-2]).max() < 0.05


def test_a_small_image_is_enlarged(tmp_path: Path) -> None:
    assert decode(saved(tmp_path / "x.png", ramp(5)), GREY).pixels.shape == (1, 32, 32)


def test_a_large_jpeg_is_decoded_near_the_size_needed_and_looks_the_same(tmp_path: Path) -> None:
    file = saved(tmp_path / "x.jpg", Image.fromarray(ramp(1024)), quality=95)
    decoded = decode(file, GREY)

    drafted = pillow.read(file.file, 64)
    assert isinstance(drafted.picture, Image.Image)
    assert drafted.picture.size == (128, 128)
    assert (decoded.width, decoded.height) == (1024, 1024)
    reference = Image.fromarray(ramp(1024)).resize((32, 32), Image.Resampling.BILINEAR)
    np.testing.assert_allclose(levels(decoded)[0], np.asarray(reference), atol=4)


# --- decode: orientation ------------------------------------------------------------------------


def oriented(file: Path, picture: Image.Image, orientation: int) -> ImageFile:
    if file.suffix == ".tif":
        tags = TiffImagePlugin.ImageFileDirectory_v2()
        tags[274] = orientation
        return saved(file, picture, tiffinfo=tags)
    exif = Image.Exif()
    exif[274] = orientation
    return saved(file, picture, exif=exif, **({"lossless": True} if file.suffix == ".webp" else {}))


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", [".png", ".tif", ".webp", ".jpg"])
def test_images_are_turned_upright(tmp_path: Path, suffix: str, orientation: int) -> None:
    picture = Image.fromarray(ramp())
    decoded = decode(oriented(tmp_path / f"x{suffix}", picture, orientation), GREY)

    upright = picture.transpose(TRANSPOSES[orientation]) if orientation > 1 else picture
    tolerance = 12 if suffix == ".jpg" else 2 if suffix == ".webp" else 0
    np.testing.assert_allclose(levels(decoded)[0], np.asarray(upright), atol=tolerance)
    assert decoded.orientation == orientation


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_width_and_height_are_those_of_the_stored_image(
    tmp_path: Path, suffix: str, orientation: int
) -> None:
    picture = Image.new("L", (40, 20))
    decoded = decode(oriented(tmp_path / f"x{suffix}", picture, orientation), GREY)
    assert (decoded.width, decoded.height) == (40, 20)


def test_a_senseless_orientation_is_ignored(tmp_path: Path) -> None:
    assert decode(oriented(tmp_path / "x.png", Image.new("L", (4, 4)), 77), GREY)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_stored_boxes_undo_the_orientation(orientation: int) -> None:
    generator = random.Random(orientation)
    for _ in range(50):
        width, height = generator.randint(2, 40), generator.randint(2, 40)
        x, y = generator.randrange(width), generator.randrange(height)
        box_width = generator.randint(1, width - x)
        box_height = generator.randint(1, height - y)
        stored = Image.new("L", (width, height))
        ImageDraw.Draw(stored).rectangle((x, y, x + box_width - 1, y + box_height - 1), fill=255)
        upright = stored.transpose(TRANSPOSES[orientation]) if orientation > 1 else stored
        left, top, right, bottom = upright.getbbox() or (0, 0, 0, 0)

        box = stored_box(
            left / upright.width,
            top / upright.height,
            right / upright.width,
            bottom / upright.height,
            width=width,
            height=height,
            orientation=orientation,
        )
        assert box == (x, y, box_width, box_height)


@pytest.mark.parametrize(
    ("corners", "box"),
    [
        ((0.5, 0.5, 0.5, 0.5), (5, 10, 1, 1)),
        ((1, 1, 1, 1), (9, 19, 1, 1)),
        ((-1, -1, 2, 2), (0, 0, 10, 20)),
        ((0.26, 0.26, 0.31, 0.3), (2, 5, 2, 1)),
    ],
)
def test_stored_boxes_hold_a_pixel_and_stay_inside(corners: Any, box: Any) -> None:
    assert stored_box(*corners, width=10, height=20, orientation=1) == box


# --- decode: what cannot be read ----------------------------------------------------------------


@pytest.mark.parametrize("suffix", ["png", "jpg", "tif", "bmp", "webp", "gif", "ppm"])
def test_a_file_cut_in_half_is_unreadable(tmp_path: Path, suffix: str) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)
    file = saved(tmp_path / f"x.{suffix}", noise).file
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])

    expected = {"truncated image"} if suffix in ("png", "jpg", "bmp", "gif", "ppm") else set()
    said = reason(image_file(file))
    assert said in (expected or {"truncated image", "damaged image"}) or "not a PNG" in said


@pytest.mark.parametrize("suffix", ["png", "jpg", "tif", "bmp", "webp", "gif", "ppm"])
def test_damaged_files_are_decoded_or_refused_with_a_plain_reason(
    tmp_path: Path, suffix: str
) -> None:
    generator = random.Random(0)
    whole = saved(tmp_path / f"x.{suffix}", colours(24)).file.read_bytes()
    reasons = []
    for _ in range(60):
        broken = bytearray(whole)
        for _ in range(generator.randint(1, 8)):
            broken[generator.randrange(min(len(broken), 300))] = generator.randrange(256)
        (tmp_path / "broken").write_bytes(broken)
        (result,) = decode_all([image_file(tmp_path / "broken")], GREY, workers=1)
        if isinstance(result, Skipped):
            reasons.append(result.reason)
    assert reasons
    assert all(
        text.isprintable() and len(text) < 90 and str(tmp_path) not in text for text in reasons
    )


def test_every_refusal_has_its_own_reason(tmp_path: Path) -> None:
    (tmp_path / "text.jpg").write_text("this is not an image at all")
    (tmp_path / "empty.png").touch()
    (tmp_path / "folder.png").mkdir()
    os.mkfifo(tmp_path / "pipe.png")
    postscript = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n"
    (tmp_path / "postscript.png").write_bytes(postscript)

    named = reason(image_file(tmp_path / "text.jpg"))
    assert named.startswith("not a PNG")
    assert all(kind in named for kind in ("NumPy", "DICOM", "NIfTI", "HDF5", "video"))
    assert reason(image_file(tmp_path / "postscript.png")).startswith("not a PNG")
    assert reason(image_file(tmp_path / "empty.png")) == "empty file"
    assert reason(image_file(tmp_path / "gone.png")) == "file does not exist"
    assert reason(image_file(tmp_path / "folder.png")) == "not a regular file"
    assert reason(image_file(tmp_path / "pipe.png")) == "not a regular file"
    one = saved(tmp_path / "one.png", np.zeros((1, 1), np.uint8))
    assert reason(one) == "is 1x1 pixels: too small to score"
    line = saved(tmp_path / "line.png", np.zeros((1, 9), np.uint8))
    assert reason(line) == "is 9x1 pixels: too small to score"


def test_a_file_too_large_to_be_an_image_is_not_read(tmp_path: Path) -> None:
    with (tmp_path / "x.png").open("wb") as file:
        file.truncate(3 * 1024**3)
    assert reason(image_file(tmp_path / "x.png")) == "file is larger than 2 GiB"


def test_a_decompression_bomb_is_refused(tmp_path: Path) -> None:
    def chunk(kind: bytes, data: bytes) -> bytes:
        checksum = struct.pack(">I", zlib.crc32(kind + data))
        return struct.pack(">I", len(data)) + kind + data + checksum

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 60_000, 60_000, 8, 0, 0, 0, 0))
    (tmp_path / "x.png").write_bytes(b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", b""))
    assert "too many pixels" in reason(image_file(tmp_path / "x.png"))


def test_too_little_memory_for_an_image_is_a_reason_to_skip_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def exhausted(*_: Any, **__: Any) -> None:
        raise MemoryError

    file = saved(tmp_path / "x.png", ramp())
    monkeypatch.setattr(Image, "open", exhausted)
    assert reason(file) == "needs more memory than there is"


def test_warnings_of_pillow_are_silent_in_every_thread(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 600)  # 32x32 warns, twice as many fail
    files = [saved(tmp_path / f"{index}.png", ramp()) for index in range(20)]

    # Warnings are errors here, so that one that got through would have been a Skipped.
    results = list(decode_all(files, GREY, workers=4))

    assert all(isinstance(result, Decoded) for result in results)


def test_warnings_of_others_are_left_alone() -> None:
    picture.silence()
    with pytest.warns(UserWarning, match="mine"):
        exec("import warnings; warnings.warn('mine')", {"__name__": "elsewhere"})


def test_equal_contents_have_equal_digests_whatever_the_name(tmp_path: Path) -> None:
    first = saved(tmp_path / "a.png", ramp())
    shutil.copy(first.file, tmp_path / "b.jpg")
    other = saved(tmp_path / "c.png", ramp()[::-1])

    digests = [
        decode(image_file(file), GREY).digest
        for file in (first.file, tmp_path / "b.jpg", other.file)
    ]
    assert digests[0] == digests[1] != digests[2]
    assert len(digests[0]) == 32


def test_images_are_decoded_without_loading_torch() -> None:
    modules = "anoscan.images.decode, anoscan.report.pictures"
    code = f"import sys, {modules}; sys.exit('torch' in sys.modules)"
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    assert subprocess.run([sys.executable, "-c", code], env=environment).returncode == 0


# --- stream -------------------------------------------------------------------------------------


@pytest.fixture
def mixed(tmp_path: Path) -> list[ImageFile]:
    files = []
    for index in range(24):
        side = 200 if index % 5 == 0 else 8
        file = saved(tmp_path / f"{index:02}.png", np.full((side, side), index, np.uint8))
        if index % 7 == 3:
            file.file.write_bytes(b"broken")
        files.append(file)
    return files


@pytest.mark.parametrize("workers", [1, 4])
def test_results_come_in_input_order_whatever_the_workers(
    mixed: list[ImageFile], workers: int
) -> None:
    results = list(decode_all(mixed, GREY, workers=workers))

    paths = [item.path if isinstance(item, Skipped) else item.image.path for item in results]
    assert paths == [image.path for image in mixed]
    for index, result in enumerate(results):
        assert isinstance(result, Skipped) == (index % 7 == 3)
        if isinstance(result, Decoded):
            assert np.unique(levels(result)).tolist() == [index]


@pytest.mark.parametrize("workers", [1, 3])
def test_an_endless_list_of_files_is_read_only_a_little_ahead(
    mixed: list[ImageFile], workers: int
) -> None:
    taken = 0

    def endless() -> Iterator[ImageFile]:
        nonlocal taken
        for image in itertools.cycle(mixed):
            taken += 1
            yield image

    results = decode_all(endless(), GREY, workers=workers)
    for used in range(1, 40):
        next(results)
        assert taken <= used + 4 * workers
    results.close()  # type: ignore[attr-defined]


def test_finished_results_do_not_wait_for_the_look_ahead_to_fill(mixed: list[ImageFile]) -> None:
    taken: list[ImageFile] = []

    def slow() -> Iterator[ImageFile]:
        for image in mixed:
            taken.append(image)
            time.sleep(0.02)
            yield image

    next(decode_all(slow(), GREY, workers=4))
    assert len(taken) < 16


# --- rule ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("window", [None, (0.5, 4095.0)])
def test_a_rule_survives_its_json_form(window: tuple[float, float] | None) -> None:
    rule = ImageRule(size=64, channels=3, window=window)
    assert ImageRule.from_dict(rule.to_dict()) == rule


GOOD = {"size": 64, "channels": 1, "window": [0, 1]}


@pytest.mark.parametrize(
    "values",
    [None, [], {}, GOOD | {"more": 1}, {"size": 64, "channels": 1}]
    + [GOOD | {"size": size} for size in (0, 10**9, -4, 64.0, "64", True, None)]
    + [GOOD | {"channels": channels} for channels in (0, 17, 3.0, True, None, "3", [])]
    + [GOOD | {"window": window} for window in (3, "ab", [1], [1, 1], [2, 1], [0, True])]
    + [GOOD | {"window": window} for window in ([0, float("nan")], [0, float("inf")], [0, "1"])]
    + [GOOD | {"window": window} for window in ([-1e308, 1e308], [0, 10**400], {"a": 1, "b": 2})],
)
def test_a_rule_of_hostile_values_is_refused(values: Any) -> None:
    with pytest.raises(ValueError, match=r"size|channels|window"):
        ImageRule.from_dict(values)


# --- inspect ------------------------------------------------------------------------------------


def inspected(files: list[ImageFile], **options: Any) -> Inspection:
    roi = options.pop("roi", None)
    return inspect(files, TrainConfig(**options), workers=2, roi=roi)


def test_what_is_outside_a_region_of_interest_does_not_set_the_range(tmp_path: Path) -> None:
    samples = np.random.default_rng(0).integers(7000, 29000, (40, 60)).astype(np.uint16)
    samples[36:, :30], samples[36:, 30:] = 0, 65535  # as a scale bar burnt in
    exif = Image.Exif()
    files = []
    for orientation in (1, 6):
        exif[0x0112] = orientation
        file = tmp_path / f"{orientation}.tif"
        Image.fromarray(samples).save(file, exif=exif)
        files.append(ImageFile(file.name, file, file.name))
    inside = np.ones((40, 60), np.bool_)
    inside[36:] = False
    assert inspected(files[:1]).rule.window == (0, 65535)
    for file, mask in ((files[0], inside), (files[1], np.rot90(inside, -1))):
        window = inspected([file], roi=Roi.of(mask)).rule.window
        assert window is not None
        assert 7000 <= window[0] < window[1] <= 29000


@pytest.mark.parametrize(
    ("shapes", "size"),
    [
        ([(28, 28)], 28),
        ([(30, 17)], 32),
        ([(9, 5)], 16),
        ([(300, 200)], 128),
        ([(20, 20), (40, 24), (90, 90)], 40),
    ],
)
def test_the_size_follows_the_longer_sides(
    tmp_path: Path, shapes: list[tuple[int, int]], size: int
) -> None:
    files = [
        saved(tmp_path / f"{index}.png", Image.new("L", shape))
        for index, shape in enumerate(shapes)
    ]
    found = inspected(files)

    assert found.rule == ImageRule(size=size, channels=1, window=None)
    assert found.sizes == {f"{width}x{height}": 1 for width, height in shapes}
    assert found.inspected == len(shapes)


def test_what_the_user_sets_is_not_learned(tmp_path: Path) -> None:
    found = inspected([saved(tmp_path / "x.png", colours())], size=48, channels=1)
    assert (found.rule.size, found.rule.channels) == (48, 1)


@pytest.mark.parametrize(
    ("picture", "channels", "kind"),
    [
        (Image.fromarray(ramp()), 1, "8-bit grey"),
        (Image.fromarray(ramp()).convert("RGB"), 1, "8-bit grey"),
        (Image.fromarray(colours()), 3, "8-bit colour"),
        (Image.fromarray(colours()).convert("P"), 3, "8-bit colour"),
        (Image.fromarray(ramp().astype(np.uint16)), 1, "16-bit grey"),
        (Image.fromarray(ramp().astype(np.int32)), 1, "32-bit grey"),
        (Image.fromarray(ramp().astype(np.float32)), 1, "32-bit float"),
    ],
)
def test_colour_and_depth_are_recognised(
    tmp_path: Path, picture: Image.Image, channels: int, kind: str
) -> None:
    found = inspected([saved(tmp_path / "x.tif", picture)])
    assert (found.rule.channels, found.bit_depths) == (channels, {kind: 1})


def test_a_single_coloured_pixel_makes_a_colour_model(tmp_path: Path) -> None:
    picture = Image.fromarray(ramp()).convert("RGB")
    picture.putpixel((9, 9), (10, 10, 200))
    files = [saved(tmp_path / "grey.png", ramp()), saved(tmp_path / "colour.png", picture)]
    assert inspected(files).rule.channels == 3


def test_a_sixteen_bit_pgm_is_called_sixteen_bit(tmp_path: Path) -> None:
    file = saved(tmp_path / "x.pgm", ramp().astype(np.uint16) * 257)
    assert inspected([file]).bit_depths == {"16-bit grey": 1}


def test_the_window_spans_the_levels_in_use(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    files = [
        saved(tmp_path / f"{i}.png", generator.integers(300, 3300, (64, 64)).astype(np.uint16))
        for i in range(4)
    ]
    assert inspected(files).rule.window == (300, 3299)


def test_hot_pixels_do_not_stretch_the_window(tmp_path: Path) -> None:
    samples = np.random.default_rng(0).integers(300, 3300, (64, 64)).astype(np.uint16)
    samples[5, 5] = 65_535
    window = inspected([saved(tmp_path / "x.png", samples)]).rule.window
    assert window is not None
    assert 300 <= window[0] < 310
    assert 3290 < window[1] < 3300


def test_sparse_bright_spots_on_a_flat_ground_make_the_window(tmp_path: Path) -> None:
    samples = np.full((100, 100), 7, np.uint16)
    samples[3, 3] = 900
    assert inspected([saved(tmp_path / "x.png", samples)]).rule.window == (7, 900)


def test_flat_deep_images_still_get_a_window(tmp_path: Path) -> None:
    flat = saved(tmp_path / "x.png", np.full((32, 32), 7, np.uint16))
    assert inspected([flat]).rule.window == (7, 8)


def test_samples_of_wide_images_come_from_all_columns(tmp_path: Path) -> None:
    samples = np.tile(np.arange(512, dtype=np.uint16), (512, 1))
    window = inspected([saved(tmp_path / "x.png", samples)]).rule.window
    taken = _samples(samples.astype(np.float32))
    assert window == (0, 511)
    assert len(taken) <= 16_386
    assert len(np.unique(taken)) == 512


def test_at_most_512_files_are_opened_and_the_seed_says_which(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = saved(tmp_path / "x.png", ramp()).file
    many = [ImageFile(str(index), file, "x.png") for index in range(700)]
    opened: list[str] = []
    look = _look
    monkeypatch.setattr(
        inspection, "_look", lambda image, **how: (opened.append(image.path), look(image, **how))[1]
    )

    draws = []
    for seed in (1, 1, 2):
        opened.clear()
        assert inspected(many, seed=seed).inspected == 512
        draws.append(set(opened))

    assert draws[0] == draws[1] != draws[2]
    assert len(draws[0]) == 512


def test_unreadable_files_do_not_count(tmp_path: Path) -> None:
    (tmp_path / "bad.png").write_text("bad")
    hole = saved(tmp_path / "hole.tif", np.full((8, 8), np.nan, np.float32))
    files = [image_file(tmp_path / "bad.png"), hole, saved(tmp_path / "good.png", ramp())]
    assert inspected(files).inspected == 1
    with pytest.raises(InputError, match=r"none of the 2 images.*bad\.png: not a PNG") as caught:
        inspected(files[:2])
    assert all(extra in str(caught.value.hint) for extra in ("dicom", "nifti", "hdf5", "video"))
    with pytest.raises(InputError, match="none of the 0 images"):
        inspected([])


def test_sizes_are_counted_upright(tmp_path: Path) -> None:
    files = [
        oriented(tmp_path / f"x{suffix}", Image.new("L", (40, 20)), 6)
        for suffix in (".png", ".tif")
    ]
    assert inspected(files).sizes == {"20x40": 2}


# --- ImageArray ---------------------------------------------------------------------------------


@pytest.mark.parametrize("in_memory", [10**9, 0])
def test_an_array_holds_what_decode_gives_and_lists_the_rest(
    mixed: list[ImageFile], in_memory: int
) -> None:
    progress: list[tuple[int, int]] = []

    def report(done: int, total: int) -> None:
        progress.append((done, total))

    array, skipped = ImageArray.load(
        mixed, COLOUR, workers=2, on_progress=report, in_memory=in_memory
    )
    assert isinstance(array.pixels, np.memmap) == (in_memory == 0)
    assert array.pixels.dtype == np.float32
    assert [item.path for item in skipped] == [mixed[i].path for i in (3, 10, 17)]
    assert len(array) == len(array.pixels) == len(array.images) == len(array.digests) == 21
    for pixels, image, digest in zip(array.pixels, array.images, array.digests, strict=True):
        decoded = decode(image, COLOUR)
        np.testing.assert_array_equal(pixels, decoded.pixels)
        assert digest == decoded.digest
    np.testing.assert_array_equal(array.pixels[[4, 0, 4]][1], array.pixels[0])
    assert progress == [(done, 24) for done in range(1, 25)]


def test_the_temporary_file_has_no_name_and_is_gone_with_the_pixels(
    mixed: list[ImageFile], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(folder))

    def mapped() -> bool:
        return str(folder) in Path("/proc/self/maps").read_text()

    array, _ = ImageArray.load(mixed, GREY, workers=1, in_memory=0)
    assert list(folder.iterdir()) == []
    assert mapped()
    del array
    assert not mapped()


def test_a_full_temporary_folder_is_an_error_that_says_what_to_do(
    mixed: list[ImageFile], monkeypatch: pytest.MonkeyPatch
) -> None:
    usage: Callable[[str], Any] = lambda _: shutil._ntuple_diskusage(100, 99, 1)  # type: ignore[attr-defined] # noqa: E731
    monkeypatch.setattr(shutil, "disk_usage", usage)
    with pytest.raises(InputError, match="GB") as caught:
        ImageArray.load(mixed, GREY, workers=1, in_memory=0)
    assert "TMPDIR" in (caught.value.hint or "")


def test_a_folder_without_a_readable_image_gives_an_empty_array(tmp_path: Path) -> None:
    (tmp_path / "bad.png").write_text("bad")
    array, skipped = ImageArray.load([image_file(tmp_path / "bad.png")], GREY, workers=1)
    assert (len(array), array.pixels.shape, len(skipped)) == (0, (0, 1, 32, 32), 1)


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_large_transparent_images_are_laid_over_black_in_strips(
    mode: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    rgba = np.random.default_rng(0).integers(0, 256, (37, 23, 4), dtype=np.uint8)
    image = Image.fromarray(rgba).convert(mode)
    if mode == "P":
        image.info["transparency"] = 5
    for channels in (1, 3):
        whole = np.asarray(shallow_image(image, channels))
        with monkeypatch.context() as patch:
            patch.setattr(decode_module, "_STRIP", 60)
            np.testing.assert_array_equal(np.asarray(shallow_image(image, channels)), whole)
