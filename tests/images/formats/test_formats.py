"""Formats with pages and more than 8 bits: TIFF and NumPy arrays."""

from __future__ import annotations

import io
import os
import random
import struct
import time
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import tifffile
from PIL import Image

from anoscan.core.config import TrainConfig
from anoscan.core.errors import InputError
from anoscan.core.results import Skipped
from anoscan.dataset.inspection import Inspection, inspect
from anoscan.images import formats
from anoscan.images.decode import ImageRule, decode, decode_all
from anoscan.images.files import ImageFile, find, in_file
from anoscan.images.formats import npy, tiff

Samples = np.ndarray[Any, np.dtype[Any]]
RNG = np.random.default_rng(0)
GREY = RNG.integers(0, 4000, (32, 32)).astype(np.uint16)
COLOUR = RNG.integers(0, 4000, (32, 32, 3)).astype(np.uint16)


def rule(channels: int = 1, window: tuple[float, float] | None = (0, 4000)) -> ImageRule:
    return ImageRule(size=32, channels=channels, window=window)


def only(file: Path, how: ImageRule | None = None) -> Samples:
    """Pixels of a file with one image, back on the scale of the window 0 to 4000."""
    (image,) = find([file])
    return (decode(image, how or rule()).pixels + 1) * 2000


def page(file: Path, number: int | None) -> ImageFile:
    return ImageFile(f"{file.name}/{number}", file, f"{file.name}/{number}", number)


def reason(image: ImageFile | Path, how: ImageRule | None = None) -> str:
    image = ImageFile(image.name, image, image.name) if isinstance(image, Path) else image
    with pytest.raises(InputError) as caught:
        decode(image, how or rule())
    return caught.value.message


def inspected(*files: Path) -> Inspection:
    found = find(list(files))
    return inspect(found, TrainConfig(), workers=1)


@pytest.mark.parametrize("kind", ["u1", "u2"])
@pytest.mark.parametrize("compression", [None, "zlib"])
def test_white_may_be_zero_at_any_depth(tmp_path: Path, kind: str, compression: str | None) -> None:
    samples = np.arange(24 * 20, dtype=kind).reshape(24, 20) * (100 if kind == "u2" else 1)
    most = np.iinfo(samples.dtype).max
    for name, photometric in (("black", "minisblack"), ("white", "miniswhite")):
        stored = samples if name == "black" else most - samples
        file = tmp_path / f"{name}.tif"
        tifffile.imwrite(file, stored, photometric=photometric, compression=compression)
    how = rule(window=(0.0, float(most)) if kind == "u2" else None)
    black, white = (
        decode(ImageFile(f"{name}.tif", tmp_path / f"{name}.tif", f"{name}.tif"), how)
        for name in ("black", "white")
    )
    np.testing.assert_array_equal(black.pixels, white.pixels)


# --- what was read before is read as before -----------------------------------------------------


@pytest.mark.parametrize("suffix", ["png", "tif", "bmp", "webp", "ppm", "jpg"])
@pytest.mark.parametrize("shape", [(37, 53), (37, 53, 3)])
@pytest.mark.parametrize("window", [None, (3.0, 900.0)])
def test_images_of_8_bits_are_read_as_they_always_were(
    tmp_path: Path, suffix: str, shape: tuple[int, ...], window: tuple[float, float] | None
) -> None:
    stored = Image.fromarray(RNG.integers(0, 256, shape, np.uint8))
    stored.save(tmp_path / f"x.{suffix}")
    (found,) = find([tmp_path])

    pixels = decode(found, rule(3, window)).pixels

    opened = Image.open(tmp_path / f"x.{suffix}").convert("RGB")
    resized = np.asarray(opened.resize((32, 32), Image.Resampling.BILINEAR), np.float64)
    expected = (resized / 127.5 - 1).transpose(2, 0, 1).astype(np.float32)
    assert pixels.tobytes() == np.ascontiguousarray(expected).tobytes()
    assert found.page is None


@pytest.mark.parametrize("kind", [np.uint16, np.int32, np.float32])
@pytest.mark.parametrize("compression", [None, "tiff_lzw", "tiff_adobe_deflate"])
@pytest.mark.parametrize("window", [None, (3.0, 900.0)])
def test_deep_grey_tiffs_are_read_as_they_always_were(
    tmp_path: Path, kind: type, compression: str | None, window: tuple[float, float] | None
) -> None:
    samples = (RNG.integers(0, 1000, (37, 53)) * 7 / (1000 if kind is np.float32 else 1)).astype(
        kind
    )
    Image.fromarray(samples).save(tmp_path / "x.tif", compression=compression)
    (found,) = find([tmp_path])

    pixels = decode(found, rule(1, window)).pixels

    floats = Image.fromarray(samples.astype(np.float32))
    resized = np.asarray(floats.resize((32, 32), Image.Resampling.BILINEAR), np.float64)
    full = (0.0, 1.0) if kind is np.float32 else (np.iinfo(kind).min, np.iinfo(kind).max)
    low, high = window or full
    expected = np.clip((resized - low) / (high - low) * 2 - 1, -3, 3).astype(np.float32)
    assert pixels.tobytes() == expected[None].tobytes()


def test_colours_of_16_bits_are_reduced_as_ever_for_a_model_that_learned_no_window(
    tmp_path: Path,
) -> None:
    tifffile.imwrite(tmp_path / "x.tif", COLOUR * 16, photometric="rgb")

    pixels = decode(find([tmp_path])[0], rule(3, None)).pixels

    expected = ((COLOUR * 16 >> 8) / 127.5 - 1).transpose(2, 0, 1).astype(np.float32)
    assert pixels.tobytes() == np.ascontiguousarray(expected).tobytes()


# --- PNG ----------------------------------------------------------------------------------------


def png(samples: npt.NDArray[np.uint16], orientation: int = 1) -> bytes:
    """A PNG of 16-bit samples (height, width, n), which Pillow cannot write."""
    height, width, n = samples.shape
    kind = {1: 0, 2: 4, 3: 2, 4: 6}[n]
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in samples)
    exif = Image.Exif()
    exif[0x0112] = orientation
    chunks = {
        b"IHDR": struct.pack(">IIBBBBB", width, height, 16, kind, 0, 0, 0),
        b"eXIf": exif.tobytes().removeprefix(b"Exif\0\0"),
        b"IDAT": zlib.compress(rows),
        b"IEND": b"",
    }
    framed = (
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        for name, data in chunks.items()
    )
    return b"\x89PNG\r\n\x1a\n" + b"".join(framed)


def test_pngs_with_colours_of_16_bits_keep_their_levels(tmp_path: Path) -> None:
    (tmp_path / "x.png").write_bytes(png(COLOUR))
    np.testing.assert_allclose(only(tmp_path, rule(3)), np.moveaxis(COLOUR, 2, 0), atol=1e-3)
    found = inspected(tmp_path)
    assert found.bit_depths == {"16-bit colour": 1}
    assert found.rule.window is not None
    assert found.rule.window[1] > 3900
    reduced = decode(find([tmp_path])[0], rule(3, None)).pixels
    assert reduced.max() == np.float32(15 / 127.5 - 1)


@pytest.mark.parametrize("n", [2, 4])
def test_opacity_of_a_deep_png_lets_black_through(tmp_path: Path, n: int) -> None:
    samples = np.concatenate([COLOUR[..., : n - 1], np.full((32, 32, 1), 65535, np.uint16)], 2)
    samples[:16, :, -1] = 0
    (tmp_path / "x.png").write_bytes(png(samples))
    pixels = only(tmp_path, rule(n - 1))
    np.testing.assert_allclose(pixels[:, :16], 0, atol=1e-3)
    expected = np.moveaxis(samples[..., :-1], 2, 0)[:, 16:]
    np.testing.assert_allclose(pixels[:, 16:], expected, atol=1e-3)


def test_a_deep_png_is_turned_upright(tmp_path: Path) -> None:
    (tmp_path / "x.png").write_bytes(png(COLOUR, orientation=6))
    upright = np.rot90(np.moveaxis(COLOUR, 2, 0), -1, (1, 2))
    np.testing.assert_allclose(only(tmp_path, rule(3)), upright, atol=1e-3)


def test_a_cut_deep_png_is_refused_by_its_reason(tmp_path: Path) -> None:
    (tmp_path / "x.png").write_bytes(png(COLOUR)[:2000])
    assert reason(tmp_path / "x.png", rule(3)) == "truncated image"


@pytest.mark.parametrize("kept", [4, 8, 20, 24, 25, 26, 30])
def test_a_png_cut_within_its_header_is_refused_and_stops_no_search(
    tmp_path: Path, kept: int
) -> None:
    (tmp_path / "x.png").write_bytes(png(COLOUR)[:kept])
    (found,) = find([tmp_path])
    assert reason(found)


# --- TIFF ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "kind",
    ["uint16", "int16", "uint32", "int32", "uint64", "float16", "float32", "float64"],
)
@pytest.mark.parametrize("options", [{}, {"compression": "zlib", "predictor": True}])
def test_deep_grey_tiffs_of_every_type_keep_their_levels(
    tmp_path: Path, kind: str, options: dict[str, Any]
) -> None:
    if kind in ("uint64", "float16") and options:
        options = {"compression": "zlib"}
    samples = (GREY // 2).astype(kind)
    tifffile.imwrite(tmp_path / "x.tif", samples, photometric="minisblack", **options)
    np.testing.assert_allclose(only(tmp_path)[0], samples, atol=1e-3)


def test_unsigned_samples_of_32_bits_do_not_turn_negative(tmp_path: Path) -> None:
    samples = np.full((32, 32), 4_000_000_000, np.uint32)
    tifffile.imwrite(tmp_path / "x.tif", samples)
    pixels = decode(find([tmp_path])[0], rule(window=(0, 4e9))).pixels
    np.testing.assert_allclose(pixels, 1)


@pytest.mark.parametrize("planar", ["contig", "separate"])
@pytest.mark.parametrize("kind", ["uint16", "float32"])
def test_deep_colours_keep_their_levels(tmp_path: Path, planar: str, kind: str) -> None:
    stored = COLOUR if planar == "contig" else np.moveaxis(COLOUR, 2, 0)
    tifffile.imwrite(
        tmp_path / "x.tif", stored.astype(kind), photometric="rgb", planarconfig=planar
    )
    np.testing.assert_allclose(only(tmp_path, rule(3)), np.moveaxis(COLOUR, 2, 0), atol=1e-3)
    grey = COLOUR @ [0.299, 0.587, 0.114]
    np.testing.assert_allclose(only(tmp_path)[0], grey, atol=1e-2)
    found = inspected(tmp_path)
    assert found.bit_depths == {"16-bit colour" if kind == "uint16" else "32-bit float": 1}
    assert found.rule.channels == 3
    assert found.rule.window is not None
    assert found.rule.window[1] > 3900


def test_opacity_of_deep_colours_lets_black_through(tmp_path: Path) -> None:
    opacity = np.full((32, 32, 1), 65535, np.uint16)
    opacity[:16] = 0
    tifffile.imwrite(
        tmp_path / "x.tif",
        np.concatenate([COLOUR, opacity], 2),
        photometric="rgb",
        extrasamples=["unassalpha"],
    )
    pixels = only(tmp_path, rule(3))
    np.testing.assert_allclose(pixels[:, :16], 0, atol=1e-3)
    np.testing.assert_allclose(pixels[:, 16:], np.moveaxis(COLOUR, 2, 0)[:, 16:], atol=1e-3)


def test_samples_that_are_no_colours_are_refused_by_name(tmp_path: Path) -> None:
    tifffile.imwrite(
        tmp_path / "x.tif",
        RNG.integers(0, 99, (32, 32, 5)).astype(np.uint16),
        photometric="minisblack",
        planarconfig="contig",
    )
    assert reason(tmp_path / "x.tif") == (
        "is a TIFF of 5 samples a pixel (MINISBLACK): save it as grey or RGB"
    )


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_tiff_with_a_hole_is_skipped_whoever_reads_it(tmp_path: Path, bad: float) -> None:
    samples = GREY.astype(np.float64)
    samples[3, 3] = bad
    tifffile.imwrite(tmp_path / "x.tif", samples)
    assert reason(tmp_path / "x.tif") == "has NaN or infinite pixels"


@pytest.mark.parametrize("orientation", [1, 3, 6])
def test_tiffs_that_tifffile_reads_are_turned_upright(tmp_path: Path, orientation: int) -> None:
    samples = GREY[:, :20].astype(np.float64)
    tag = [(274, 3, 1, orientation, True)]
    tifffile.imwrite(tmp_path / "x.tif", samples, extratags=tag)

    decoded = decode(find([tmp_path])[0], rule())

    square = np.asarray(Image.fromarray(samples.astype(np.float32)).resize((32, 32), 2))
    expected = {1: square, 3: np.rot90(square, 2), 6: np.rot90(square, -1)}[orientation]
    np.testing.assert_allclose((decoded.pixels[0] + 1) * 2000, expected, atol=1e-2)
    assert (decoded.width, decoded.height, decoded.orientation) == (20, 32, orientation)


# --- pages --------------------------------------------------------------------------------------


def stacks() -> list[Any]:
    deep = RNG.integers(0, 4000, (5, 32, 32)).astype(np.uint16)
    big = {"bigtiff": True}
    return [
        pytest.param(deep, {}, id="16-bit"),
        pytest.param(deep, {"byteorder": ">"}, id="big-endian"),
        pytest.param(deep, big, id="BigTIFF"),
        pytest.param(deep, big | {"byteorder": ">"}, id="big-endian BigTIFF"),
        pytest.param(deep, {"imagej": True}, id="ImageJ"),
        pytest.param(deep.astype(np.float64), {}, id="float64, which Pillow cannot read"),
        pytest.param(deep, {"compression": "zlib", "tile": (16, 16)}, id="tiled deflate"),
        pytest.param(deep, {"ome": True, "metadata": {"axes": "CYX"}}, id="OME channels"),
    ]


@pytest.mark.parametrize(("samples", "options"), stacks())
def test_each_page_of_a_tiff_is_an_image(
    tmp_path: Path, samples: Samples, options: dict[str, Any]
) -> None:
    tifffile.imwrite(tmp_path / "scan.tif", samples, photometric="minisblack", **options)

    found = find([tmp_path])

    assert [image.inside for image in found] == [f"scan.tif/{n}" for n in range(1, 6)]
    assert [image.path for image in found] == [f"{tmp_path}/scan.tif/{n}" for n in range(1, 6)]
    for image, expected in zip(found, samples, strict=True):
        np.testing.assert_allclose(
            (decode(image, rule()).pixels[0] + 1) * 2000, expected, atol=1e-3
        )


@pytest.mark.parametrize("compression", ["tiff_lzw", "packbits", "jpeg", "tiff_adobe_deflate"])
def test_compressed_pages_that_pillow_knows_need_no_other_package(
    tmp_path: Path, compression: str
) -> None:
    flats = [Image.new("RGB", (40, 30), (level, 90, 30)) for level in (10, 120, 240)]
    flats[0].save(
        tmp_path / "x.tif", save_all=True, append_images=flats[1:], compression=compression
    )
    decoded = [decode(image, rule(3, None)) for image in find([tmp_path])]
    reds = [round(float(image.pixels[0].mean() + 1) * 127.5) for image in decoded]
    np.testing.assert_allclose(reds, [10, 120, 240], atol=3)
    assert [image.width for image in decoded] == [40, 40, 40]


def test_a_page_has_a_name_that_no_file_can_have_and_that_is_understood(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tifffile.imwrite(tmp_path / "scan.tif", np.stack([GREY] * 3), photometric="minisblack")
    monkeypatch.chdir(tmp_path)
    every = find(["scan.tif"])
    assert [image.path for image in every] == ["scan.tif/1", "scan.tif/2", "scan.tif/3"]
    with pytest.raises(OSError, match=r"scan\.tif/2"):
        Path("scan.tif/2").touch()

    (second,) = find(["scan.tif/2"])
    assert second == every[1]
    assert find(["scan.tif/2", "scan.tif", "./scan.tif/1"])[0].page == 2
    assert len(find(["scan.tif/2", "scan.tif", "./scan.tif/1"])) == 3
    np.testing.assert_array_equal(decode(second, rule()).pixels, decode(every[1], rule()).pixels)


def test_a_page_that_is_not_there_is_refused(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "scan.tif", np.stack([GREY] * 3), photometric="minisblack")
    Image.fromarray(GREY.astype(np.uint8)).save(tmp_path / "x.png")
    assert reason(find([tmp_path / "scan.tif/9"])[0]) == "has no page 9: it has 3"
    assert reason(find([tmp_path / "scan.tif/0"])[0]) == "has no page 0: it has 3"
    assert reason(find([tmp_path / "x.png/2"])[0]) == "has no page 2: it has 1"
    assert reason(tmp_path / "scan.tif").startswith("holds 3 images: add a number to the path")
    with pytest.raises(InputError, match="does not exist"):
        find([tmp_path / "missing.tif/1"])


def test_smaller_copies_and_masks_are_no_pages(tmp_path: Path) -> None:
    with tifffile.TiffWriter(tmp_path / "x.tif") as file:
        file.write(GREY, subifds=1)
        file.write(GREY[::2, ::2], subfiletype=1)
        file.write(GREY[::4, ::4], subfiletype=1)
        file.write(GREY > 5, subfiletype=4)
    assert [image.page for image in find([tmp_path])] == [None]
    np.testing.assert_allclose(only(tmp_path)[0], GREY, atol=1e-3)


def test_pages_have_digests_of_their_samples(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "x.tif", np.stack([GREY, GREY + 1, GREY]), photometric="minisblack")
    digests = [decode(image, rule()).digest for image in find([tmp_path])]
    assert digests[0] == digests[2] != digests[1]
    assert len(digests[0]) == 32


def directory_at(data: bytes, number: int) -> int:
    """Offset of the pointer to a directory of a little-endian TIFF."""
    at = 4
    for _ in range(number):
        (start,) = struct.unpack_from("<I", data, at)
        at = start + 2 + 12 * struct.unpack_from("<H", data, start)[0]
    return at


def test_directories_in_a_ring_end_and_damaged_ones_end_the_list(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "x.tif", np.stack([GREY] * 4), photometric="minisblack")
    whole = (tmp_path / "x.tif").read_bytes()
    start = struct.unpack_from("<I", whole, 4)[0]
    for target, expected in [(start, 3), (len(whole) + 99, 3), (10, 3), (0, 3)]:
        data = bytearray(whole)
        struct.pack_into("<I", data, directory_at(whole, 3), target)
        (tmp_path / f"{target}.tif").write_bytes(data)
        assert tiff.count(tmp_path / f"{target}.tif") == expected


def test_a_stack_of_many_pages_is_read_without_reading_the_whole_file_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    samples = RNG.integers(0, 99, (200, 16, 16)).astype(np.uint16)
    tifffile.imwrite(tmp_path / "x.tif", samples, photometric="minisblack")
    monkeypatch.setattr(tiff, "open_file", None)
    monkeypatch.setattr(Path, "read_bytes", None)
    found = find([tmp_path])
    results = list(decode_all(found, ImageRule(size=16, channels=1, window=(0, 99)), workers=4))
    for result, expected in zip(results, samples, strict=True):
        assert not isinstance(result, Skipped), result
        np.testing.assert_allclose((result.pixels[0] + 1) * 49.5, expected, atol=1e-4)


# --- NumPy arrays -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "kind", ["uint8", "bool", "int16", ">u2", "uint32", "int64", "float16", "float32", ">f8"]
)
@pytest.mark.parametrize("order", ["C", "F"])
def test_arrays_of_every_real_type_are_images(tmp_path: Path, kind: str, order: Any) -> None:
    samples = (GREY % 256 if kind == "uint8" else GREY % 2 if kind == "bool" else GREY).astype(kind)
    np.save(tmp_path / "x.npy", np.asarray(samples, order=order))
    (found,) = find([tmp_path])

    pixels = decode(found, rule()).pixels[0]

    if kind == "bool":
        np.testing.assert_array_equal(pixels, samples * 2.0 - 1)
    elif kind == "uint8":
        np.testing.assert_allclose(pixels, samples / 127.5 - 1, atol=1e-6)
    else:
        np.testing.assert_allclose((pixels + 1) * 2000, samples.astype(float), atol=1)


@pytest.mark.parametrize(
    ("shape", "pages"),
    [
        ((32, 32), [None]),
        ((32, 32, 1), [None]),
        ((32, 32, 3), [None]),
        ((32, 32, 4), [None]),
        ((1, 32, 32), [None]),
        ((2, 32, 32), [1, 2]),
        ((7, 32, 32), list(range(1, 8))),
        ((4, 32, 32, 3), [1, 2, 3, 4]),
        ((3, 32, 32, 1), [1, 2, 3]),
    ],
)
@pytest.mark.parametrize("order", ["C", "F"])
def test_the_shape_of_an_array_says_what_its_pages_are(
    tmp_path: Path, shape: tuple[int, ...], pages: list[int | None], order: Any
) -> None:
    samples = RNG.integers(0, 4000, shape).astype(np.uint16)
    if shape[-1] == 4:
        samples[..., 3] = 65535
    np.save(tmp_path / "x.npy", np.asarray(samples, order=order))

    found = find([tmp_path])

    assert [image.page for image in found] == pages
    expected = samples.reshape(len(pages), 32, 32, -1)[..., :3]
    for image, one in zip(found, expected, strict=True):
        pixels = (decode(image, rule(one.shape[2])).pixels + 1) * 2000
        np.testing.assert_allclose(pixels, np.moveaxis(one, 2, 0), atol=1e-3)


@pytest.mark.parametrize(
    ("array", "said"),
    [
        (np.zeros((3, 32, 32)), "is an array of 3x32x32: colours, or a stack? Save it as"),
        (np.zeros((4, 32, 32)), "is an array of 4x32x32: colours, or a stack? Save it as"),
        (np.zeros((32, 9, 2)), "is an array of 32x9x2: an image is HxW or HxWx3"),
        (np.zeros((2, 3, 32, 9)), "is an array of 2x3x32x9: an image is"),
        (np.zeros(9), "is an array of 9: an image is"),
        (np.zeros(()), "is an array of one number: an image is"),
        (np.zeros((0, 9)), "is 9x0 pixels: too small to score"),
        (np.zeros((0, 32, 32)), "is an array of 0x32x32: an image is"),
        (np.zeros((9, 9), complex), "holds complex128 samples"),
        (np.zeros((9, 9), "U3"), "holds <U3 samples"),
        (np.zeros((9, 9), "M8[s]"), "holds datetime64[s] samples"),
        (np.zeros((9, 9), [("a", "f4")]), "holds [('a', '<f4')] samples"),
        (np.full((9, 9), np.nan), "has NaN or infinite pixels"),
    ],
)
def test_other_arrays_are_refused_with_what_is_wrong(
    tmp_path: Path, array: Samples, said: str
) -> None:
    np.save(tmp_path / "x.npy", array)
    assert reason(find([tmp_path])[0]).startswith(said)


class Trap:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, ("touch sprung",)


def test_nothing_in_an_array_file_is_ever_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    np.save(tmp_path / "x.npy", np.full((32, 32), Trap(), dtype=object), allow_pickle=True)
    assert reason(tmp_path / "x.npy") == "holds Python objects, which are never read"
    assert not Path("sprung").exists()


def test_headers_are_read_one_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Python 3.11.7 evaluates a header wrongly, now and then, while another thread does so as well.
    for name in range(12):
        np.save(tmp_path / f"{name}.npy", GREY)
    at_once, most = 0, 0
    genuine = np.lib.format.read_array_header_1_0

    def slow(*arguments: Any, **options: Any) -> Any:
        nonlocal at_once, most
        at_once += 1
        most = max(most, at_once)
        time.sleep(0.005)
        try:
            return genuine(*arguments, **options)
        finally:
            at_once -= 1

    monkeypatch.setattr(np.lib.format, "read_array_header_1_0", slow)
    files = [ImageFile(f"{n}.npy", tmp_path / f"{n}.npy", f"{n}.npy") for n in range(12)]
    with ThreadPoolExecutor(4) as threads:
        decoded = list(threads.map(lambda file: decode(file, rule()), files))

    assert len(decoded) == 12
    assert most == 1


# --- hostile files ------------------------------------------------------------------------------


def hostile_sources() -> list[Any]:
    made: dict[str, bytes] = {}
    for name, samples, options in [
        ("float64.tif", GREY[:16, :16].astype(np.float64), {}),
        ("colour.tif", COLOUR[:16, :16], {"photometric": "rgb", "compression": "zlib"}),
        ("tiled.tif", np.stack([GREY] * 3), {"tile": (16, 16), "photometric": "minisblack"}),
        ("ome.tif", np.stack([GREY] * 2), {"ome": True, "photometric": "minisblack"}),
    ]:
        target = io.BytesIO()
        tifffile.imwrite(target, samples, **options)
        made[name] = target.getvalue()
    for name, samples in {"stack.npy": np.stack([GREY] * 5), "grey.npy": GREY[:8, :8]}.items():
        target = io.BytesIO()
        np.save(target, samples)
        made[name] = target.getvalue()
    return [pytest.param(name, data, id=name) for name, data in made.items()]


@pytest.mark.parametrize(("name", "data"), hostile_sources())
def test_damaged_files_are_decoded_or_refused_with_a_plain_reason(
    tmp_path: Path, name: str, data: bytes
) -> None:
    generator = random.Random(0)
    directory = struct.unpack_from("<I", data, 4)[0] if data[:2] == b"II" else 0
    reasons = []
    for attempt in range(120):
        broken = bytearray(data)
        spread = [(0, 150), (directory, directory + 300)][attempt % 2]
        for _ in range(generator.randint(1, 6)):
            broken[min(generator.randrange(*spread), len(data) - 1)] = generator.randrange(256)
        if attempt % 5 == 0:
            del broken[generator.randrange(len(broken)) :]
        file = tmp_path / f"{attempt}-{name}"
        file.write_bytes(broken)
        found = in_file(name, file, name)
        for result in decode_all(found[:3], rule(3), workers=1):
            if isinstance(result, Skipped):
                reasons.append(result.reason)
    assert reasons
    assert all(text.isprintable() and len(text) < 100 for text in reasons)
    assert all(str(tmp_path) not in text for text in reasons)


def test_deflate_that_grows_beyond_its_image_is_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tiff, "_UNCHECKED", 2**20)
    target = io.BytesIO()
    noise = RNG.integers(0, 4000, (64, 64, 3)).astype(np.uint16)
    tifffile.imwrite(target, noise, photometric="rgb", compression="zlib", rowsperstrip=64)
    data = bytearray(target.getvalue())
    with tifffile.TiffFile(io.BytesIO(data)) as file:
        (offset,), (length,) = file.pages.first.dataoffsets, file.pages.first.databytecounts
    (tmp_path / "good.tif").write_bytes(data)
    assert decode(find([tmp_path / "good.tif"])[0], rule(3))
    bomb = zlib.compress(bytes(8 * 2**20), 9)
    data[offset : offset + length] = bomb.ljust(length, b"\0")
    (tmp_path / "bomb.tif").write_bytes(data)
    assert len(bomb) <= length
    assert reason(tmp_path / "bomb.tif", rule(3)) == "damaged image"


def test_images_of_too_many_pixels_are_refused_before_they_are_decoded(tmp_path: Path) -> None:
    header = io.BytesIO()
    described = {"descr": "<f4", "fortran_order": False, "shape": (20_000, 20_000)}
    np.lib.format.write_array_header_1_0(header, described)
    with (tmp_path / "x.npy").open("wb") as file:
        file.write(header.getvalue())
        file.truncate(4 * 20_000**2 + 128)  # a hole: takes no room
    assert reason(tmp_path / "x.npy") == "has too many pixels to be decoded safely"
    tifffile.imwrite(tmp_path / "x.tif", GREY.astype(np.float64))
    data = bytearray((tmp_path / "x.tif").read_bytes())
    start = struct.unpack_from("<I", data, 4)[0]
    for entry in range(struct.unpack_from("<H", data, start)[0]):
        at = start + 2 + 12 * entry
        if struct.unpack_from("<H", data, at)[0] in (256, 257):
            struct.pack_into("<HI", data, at + 2, 4, 1)
            struct.pack_into("<I", data, at + 8, 60_000)
    (tmp_path / "x.tif").write_bytes(data)
    assert reason(tmp_path / "x.tif") == "has too many pixels to be decoded safely"


def test_the_content_of_a_file_decides_not_its_name(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", GREY)
    (tmp_path / "x.npy").rename(tmp_path / "x.png")
    np.testing.assert_allclose(only(tmp_path / "x.png")[0], GREY, atol=1e-3)
    Image.fromarray(GREY.astype(np.uint8)).save(tmp_path / "y.png")
    (tmp_path / "y.png").rename(tmp_path / "y.npy")
    assert formats.count(tmp_path / "y.npy") == 1
    assert decode(find([tmp_path / "y.npy"])[0], rule()).width == 32


def test_readers_are_found_by_their_suffixes() -> None:
    assert {".tif", ".tiff", ".npy", ".png", ".jpeg"} <= formats.EXTENSIONS
    assert not npy.begins(b"\x93NUMP", "x.npy")
