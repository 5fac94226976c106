"""Every combination of what a TIFF or PNG may say about its samples, against the numbers in it."""

from __future__ import annotations

import contextlib
import io
import itertools
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from PIL import Image

from anoscan.core.errors import InputError
from anoscan.images import formats
from anoscan.images.decode import shallow_image
from anoscan.images.formats import ccitt
from anoscan.images.formats.picture import Opened
from anoscan.images.masks import UPRIGHT_ARRAYS

Samples = np.ndarray[Any, np.dtype[Any]]
EIGHT_BITS = 0.5 / 255 + 1e-6  # largest error of a value that is rounded to 8 bits
HEIGHT, WIDTH = 19, 23
RNG = np.random.default_rng(0)


def seen(opened: Opened) -> Samples:
    """What was read, upright, (height, width, n), with 0 for black and 1 for white."""
    picture = opened.picture
    if isinstance(picture, Image.Image):
        values = np.asarray(shallow_image(picture, 3), np.float64) / 255
    else:
        low, high = opened.full
        values = (np.asarray(picture, np.float64) - low) / (high - low)
    values = values[..., None] if values.ndim == 2 else values
    return UPRIGHT_ARRAYS[opened.pending](values)


def read(file: Path, content: bytes, *, deep: bool = True) -> Samples:
    file.write_bytes(content)
    return seen(formats.read(file, None, draft_side=2**31, deep=deep))


def ends(kind: np.dtype[Any]) -> tuple[float, float]:
    if kind.kind == "f":
        return 0.0, 1.0
    return float(np.iinfo(kind).min), float(np.iinfo(kind).max)


def drawn(kind: str, samples: int) -> Samples:
    """Samples (height, width, n) from all that a type can hold; for floats from 0 to 1."""
    dtype = np.dtype(kind)
    shape = (HEIGHT, WIDTH, samples)
    if dtype.kind == "f":
        return RNG.random(shape).astype(dtype)
    limits = np.iinfo(dtype)
    return RNG.integers(limits.min, limits.max, shape, dtype=dtype, endpoint=True)


def over_black(values: Samples, opacity: str, *, white: bool) -> Samples:
    """Colours from 0 to 1 whose last sample is the opacity, unless `opacity` is ''."""
    if not opacity:
        return 1 - values if white else values
    colours, share = values[..., :-1], values[..., -1:]
    if opacity == "unassalpha":
        return (1 - colours if white else colours) * share
    return np.clip(share - colours, 0, 1) if white else colours


# --- TIFF: types, compression, planes, opacity --------------------------------------------------

KINDS = ("u1", "u2", "u4", "u8", "i1", "i2", "i4", "f2", "f4", "f8")
COMPRESSIONS = [
    (None, 0),
    ("packbits", 0),
    ("zstd", 0),
    *itertools.product(("lzw", "zlib"), (0, 1)),
]


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize(("compression", "predictor"), COMPRESSIONS)
@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_tiff_is_read_as_its_numbers_say(
    tmp_path: Path, order: str, compression: str | None, predictor: int, kind: str
) -> None:
    if kind == "u8":  # tifffile writes no predictor for these
        predictor = 0
    colours = (("minisblack", "contig"), ("miniswhite", "contig"), ("rgb", "contig"))
    opacities = ("", "unassalpha", "assocalpha") if compression in (None, "zlib") else ("",)
    for (photometric, planes), opacity in itertools.product(
        (*colours, ("rgb", "separate"), ("minisblack", "separate")), opacities
    ):
        if planes == "separate" and photometric == "minisblack" and not opacity:
            continue
        samples = (3 if photometric == "rgb" else 1) + bool(opacity)
        stored = drawn(kind, samples)
        laid = np.moveaxis(stored, 2, 0) if planes == "separate" else stored
        options: dict[str, Any] = {"extrasamples": [opacity]} if opacity else {}
        if samples > 1:
            options["planarconfig"] = planes
        if planes == "contig" and photometric == "rgb":
            options["tile"] = (16, 16)
        else:
            options["rowsperstrip"] = 7
        target = io.BytesIO()
        tifffile.imwrite(
            target,
            np.ascontiguousarray(laid if samples > 1 else laid[..., 0]),
            byteorder=order,
            compression=compression,
            predictor=bool(predictor),
            photometric=photometric,
            metadata=None,
            **options,
        )
        low, high = ends(stored.dtype)
        values = (stored.astype(np.float64) - low) / (high - low)
        right = over_black(values, opacity, white=photometric == "miniswhite")
        found = read(tmp_path / "x.tif", target.getvalue())
        found = found[..., :1] if right.shape[2] == 1 else found
        limit = EIGHT_BITS if kind == "u1" else 2e-3 if kind == "f2" else 2e-6
        assert found.shape == right.shape
        assert np.abs(found - right).max() <= limit, (photometric, planes, opacity)


def test_orientations_are_applied_whoever_decodes(tmp_path: Path) -> None:
    for kind, turned in itertools.product(("u1", "u2", "f4"), range(1, 9)):
        stored = drawn(kind, 1)[..., 0]
        low, high = ends(stored.dtype)
        right = UPRIGHT_ARRAYS[turned]((stored - low) / (high - low))
        for compression in (None, "zlib"):
            target = io.BytesIO()
            tag = [(274, 3, 1, turned, True)]
            tifffile.imwrite(target, stored, extratags=tag, compression=compression)
            found = read(tmp_path / "x.tif", target.getvalue())
            np.testing.assert_allclose(found[..., 0], right, atol=1e-6)
            opened = formats.read(tmp_path / "x.tif", None, draft_side=99, deep=True)
            assert (opened.width, opened.height, opened.orientation) == (WIDTH, HEIGHT, turned)


# --- TIFF: bits, palettes, colour spaces --------------------------------------------------------

TYPES = {3: "H", 4: "I", 5: "I"}


def tiff(parts: list[bytes], tags: dict[int, tuple[int, list[int]]], order: str = "<") -> bytes:
    """A TIFF of strips, or of tiles; `tags` are {number: (type, values)}."""
    tags, at, places = dict(tags), 8, []
    for part in parts:
        places.append(at)
        at += len(part) + len(part) % 2
    tags[324 if 322 in tags else 273] = (4, places)
    tags[325 if 322 in tags else 279] = (4, [len(part) for part in parts])
    beyond = at + 2 + 12 * len(tags) + 4
    entries = values = b""
    for tag in sorted(tags):
        kind, content = tags[tag]
        data = struct.pack(f"{order}{len(content)}{TYPES[kind]}", *content)
        count = len(content) // 2 if kind == 5 else len(content)
        if len(data) > 4:
            data, values = struct.pack(order + "I", beyond + len(values)), values + data
        entries += struct.pack(order + "HHI", tag, kind, count) + data.ljust(4, b"\0")
    head = (b"II" if order == "<" else b"MM") + struct.pack(order + "HI", 42, at)
    body = b"".join(part + b"\0" * (len(part) % 2) for part in parts)
    return head + body + struct.pack(order + "H", len(tags)) + entries + bytes(4) + values


def tags_of(bits: list[int], photometric: int, **more: int) -> dict[int, tuple[int, list[int]]]:
    """Tags of a picture of `HEIGHT` and `WIDTH`, in one strip unless `rows` says another height."""
    names = {"compression": 259, "planes": 284, "extra": 338, "fill": 266}
    rows = more.pop("rows", HEIGHT)
    form = more.pop("form", 1)
    tags = {256: (4, [WIDTH]), 257: (4, [HEIGHT]), 258: (3, bits), 262: (3, [photometric])}
    tags |= {277: (3, [len(bits)]), 278: (4, [rows]), 339: (3, [form] * len(bits))}
    return tags | {names[name]: (3, [value]) for name, value in more.items()}


def packed(rows: Samples, bits: int, order: str) -> bytes:
    """Whole numbers (height, n), each row from a new byte on; whole bytes are in the `order`."""
    rows = rows.astype(np.uint64)
    if bits % 8 == 0:
        data = rows.astype(">u8").view(np.uint8).reshape(*rows.shape, 8)[..., 8 - bits // 8 :]
        return (data[..., ::-1] if order == "<" else data).tobytes()
    shifts = np.arange(bits - 1, -1, -1, dtype=np.uint64)
    ones = (rows[..., None] >> shifts) & np.uint64(1)
    return np.packbits(ones.reshape(len(rows), -1).astype(np.uint8), axis=1).tobytes()


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("form", [1, 2])
def test_samples_of_1_to_64_bits_are_scaled_to_their_full_range(
    tmp_path: Path, order: str, form: int
) -> None:
    for bits, photometric, planes in itertools.product(range(1, 65), (0, 1, 2), (1, 2)):
        if planes == 2 and photometric < 2:
            continue
        count = 3 if photometric == 2 else 1
        top = 2**bits - 1
        whole = RNG.integers(0, top, (HEIGHT, WIDTH, count), np.uint64, endpoint=True)
        parts = [whole.reshape(HEIGHT, -1)] if planes == 1 else list(np.moveaxis(whole, 2, 0))
        data = [packed(part, bits, order) for part in parts]
        tags = tags_of([bits] * count, photometric, form=form, planes=planes)
        found = read(tmp_path / "x.tif", tiff(data, tags, order))
        half = np.uint64(2 ** (bits - 1))
        signed = form == 2 and bits > 1
        shifted = whole ^ half if signed else whole  # the lowest signed number becomes 0
        right = shifted.astype(np.float64) / top
        right = 1 - right if photometric == 0 else right
        found = found[..., :1] if count == 1 else found
        limit = EIGHT_BITS if bits <= 8 else 2e-6
        assert np.abs(found - right).max() <= limit, (bits, photometric, planes)


@pytest.mark.parametrize("bits", [1, 2, 4, 8, 16])
@pytest.mark.parametrize("compression", [1, 8])
@pytest.mark.parametrize("opacity", [False, True])
def test_palettes_give_colours(tmp_path: Path, bits: int, compression: int, opacity: bool) -> None:
    table = RNG.integers(0, 65535, (3, 2**bits), np.uint16, endpoint=True)
    whole = RNG.integers(0, 2**bits, (HEIGHT, WIDTH, 1 + opacity))
    data = packed(whole.reshape(HEIGHT, -1), bits, "<")
    data = zlib.compress(data) if compression == 8 else data
    extra = {"extra": 2} if opacity else {}
    tags = tags_of([bits] * (1 + opacity), 3, compression=compression, **extra)
    tags[320] = (3, table.ravel().tolist())
    right = np.moveaxis(table[:, whole[..., 0]], 0, 2) / 65535
    right = right * whole[..., 1:] / (2**bits - 1) if opacity else right
    found = read(tmp_path / "x.tif", tiff([data], tags))
    # Colours of a palette are cut to 8 bits, and the opacity is rounded to 8.
    assert np.abs(found - right).max() < (2.6 if opacity else 1.01) / 255


@pytest.mark.parametrize(("mode", "photometric"), [("CMYK", 5), ("YCbCr", 6), ("LAB", 8)])
def test_other_colour_spaces_become_the_rgb_that_pillow_makes_of_them(
    tmp_path: Path, mode: str, photometric: int
) -> None:
    picture = Image.fromarray(RNG.integers(0, 256, (HEIGHT, WIDTH, 3), np.uint8))
    picture = Image.fromarray(np.asarray(picture.resize((WIDTH, HEIGHT)))).convert(
        "RGB" if mode == "LAB" else mode
    )
    stored = np.asarray(picture)
    if mode == "LAB":
        stored = RNG.integers(0, 256, (HEIGHT, WIDTH, 3), np.uint8)
        picture = Image.frombytes("LAB", (WIDTH, HEIGHT), stored.tobytes(), "raw", "LAB")
    right = np.asarray(picture.convert("RGB")) / 255
    count = stored.shape[2]
    for planes, compression in itertools.product((1, 2), (1, 8)):
        parts = [stored] if planes == 1 else list(np.moveaxis(stored, 2, 0))
        data = [part.tobytes() for part in parts]
        data = [zlib.compress(part) for part in data] if compression == 8 else data
        tags = tags_of([8] * count, photometric, compression=compression, planes=planes)
        tags[530] = (3, [1, 1])
        found = read(tmp_path / "x.tif", tiff(data, tags))
        np.testing.assert_array_equal(found, right)


@pytest.mark.parametrize("compression", [1, 8])
@pytest.mark.parametrize(("across", "down"), list(itertools.product((1, 2, 4), (1, 2, 4))))
@pytest.mark.parametrize("tiled", [False, True])
def test_colours_that_several_pixels_share_are_given_to_each(
    tmp_path: Path, compression: int, across: int, down: int, tiled: bool
) -> None:
    luma = RNG.integers(60, 200, (HEIGHT, WIDTH))
    high, wide = -(-HEIGHT // down), -(-WIDTH // across)
    shared = RNG.integers(110, 146, (high, wide, 2))
    chroma = shared.repeat(down, 0).repeat(across, 1)[:HEIGHT, :WIDTH]
    whole = np.dstack([luma, chroma])
    step = 16 if tiled else 8
    parts = []
    for top, left in itertools.product(
        range(0, HEIGHT, step), range(0, WIDTH, 16 if tiled else 99)
    ):
        part = whole[top : top + step, left : left + 16 if tiled else WIDTH]
        rows = step if tiled else -(-len(part) // down) * down
        columns = 16 if tiled else wide * across
        edge = ((0, rows - len(part)), (0, columns - part.shape[1]), (0, 0))
        part = np.pad(part, edge, "edge")
        blocks = part[..., 0].reshape(rows // down, down, columns // across, across)
        blocks = blocks.swapaxes(1, 2).reshape(rows // down, columns // across, -1)
        laid = np.concatenate([blocks, part[::down, ::across, 1:]], 2).astype(np.uint8).tobytes()
        parts.append(zlib.compress(laid) if compression == 8 else laid)
    tags = tags_of([8] * 3, 6, rows=step, compression=compression)
    tags[530] = (3, [across, down])
    if tiled:
        del tags[278]
        tags |= {322: (3, [16]), 323: (3, [16])}
    y, b, r = np.moveaxis(whole.astype(np.float64), 2, 0)
    b, r = b - 128, r - 128
    right = np.stack([y + 1.402 * r, y - 0.344136 * b - 0.714136 * r, y + 1.772 * b], 2)
    found = read(tmp_path / "x.tif", tiff(parts, tags)) * 255
    assert np.abs(found - right.clip(0, 255)).max() < 1.5


def test_ycbcr_of_studio_range_is_stretched(tmp_path: Path) -> None:
    stored = np.broadcast_to(np.uint8([235, 128, 128]), (HEIGHT, WIDTH, 3))
    tags = tags_of([8] * 3, 6)
    tags |= {530: (3, [1, 1]), 532: (5, [16, 1, 235, 1, 128, 1, 240, 1, 128, 1, 240, 1])}
    np.testing.assert_allclose(read(tmp_path / "x.tif", tiff([stored.tobytes()], tags)), 1)


def test_bytes_whose_lowest_bit_is_first_are_turned(tmp_path: Path) -> None:
    turned = np.array([int(f"{byte:08b}"[::-1], 2) for byte in range(256)], np.uint8)
    for bits in (1, 4, 8, 12, 16):
        whole = RNG.integers(0, 2**bits, (HEIGHT, WIDTH))
        data = turned[np.frombuffer(packed(whole, bits, "<"), np.uint8)].tobytes()
        found = read(tmp_path / "x.tif", tiff([data], tags_of([bits], 1, fill=2)))
        assert np.abs(found[..., 0] - whole / (2**bits - 1)).max() <= EIGHT_BITS


# --- TIFF: fax ----------------------------------------------------------------------------------


def fax(bilevel: Samples, compression: str, options: int = 0) -> bytes:
    target = io.BytesIO()
    info = {292: options} if options else {}
    Image.fromarray(bilevel).save(target, "TIFF", compression=compression, tiffinfo=info)
    return target.getvalue()


@pytest.mark.parametrize("compression", ["tiff_ccitt", "group3", "group4"])
@pytest.mark.parametrize("options", [0, 1])
def test_fax_strips_are_read_bit_by_bit(tmp_path: Path, compression: str, options: int) -> None:
    if options and compression != "group3":
        options = 0
    runs = np.zeros((2700, 5600), np.bool_)
    for length, row in enumerate(runs):
        row[length : 2 * length + 1] = True
    for bilevel in (runs, RNG.random((40, 61)) < 0.5, np.ones((9, 8), np.bool_)):
        found = read(tmp_path / "x.tif", fax(bilevel, compression, options))
        np.testing.assert_array_equal(found[..., 0], bilevel)


@pytest.mark.parametrize("compression", ["tiff_ccitt", "group3", "group4"])
def test_fax_strips_with_wrong_code_words_are_refused(tmp_path: Path, compression: str) -> None:
    bilevel = np.kron(RNG.random((30, 20)) < 0.5, np.ones((3, 8))).astype(np.bool_)
    whole = fax(bilevel, compression)
    with tifffile.TiffFile(io.BytesIO(whole)) as file:
        start, length = file.pages[0].dataoffsets[0], file.pages[0].databytecounts[0]
    refused = 0
    for at in range(0, length - 4, 3):
        broken = bytearray(whole)
        broken[start + at : start + at + 4] = bytes(4)  # too many zeros for any code word
        (tmp_path / "x.tif").write_bytes(broken)
        with contextlib.suppress(InputError):
            formats.read(tmp_path / "x.tif", None, draft_side=99, deep=True)
            continue
        refused += 1
    assert refused >= 0.9 * len(range(0, length - 4, 3))


def test_code_words_of_fax_are_prefixes_of_no_other() -> None:
    for words in (ccitt._WHITE, ccitt._BLACK):
        known = sorted((words + ccitt._LONG).split())
        assert len(known) == 64 + 27 + 13
        assert not any(b.startswith(a) for a, b in itertools.pairwise(known))


# --- PNG ----------------------------------------------------------------------------------------

PASSES = (
    (0, 0, 8, 8),
    (4, 0, 8, 8),
    (0, 4, 4, 8),
    (2, 0, 4, 4),
    (0, 2, 2, 4),
    (1, 0, 2, 2),
    (0, 1, 1, 2),
)


def chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def png(
    whole: Samples, bits: int, colour: int, between: bytes = b"", *, laced: bool = False
) -> bytes:
    """A PNG of whole numbers (height, width, n), with chunks between the header and the pixels."""
    rows = b""
    for left, top, across, down in PASSES if laced else ((0, 0, 1, 1),):
        part = whole[top::down, left::across]
        if part.size:
            lines = packed(part.reshape(len(part), -1), bits, ">")
            length = len(lines) // len(part)
            rows += b"".join(b"\0" + lines[n : n + length] for n in range(0, len(lines), length))
    head = struct.pack(">IIBBBBB", whole.shape[1], len(whole), bits, colour, 0, 0, laced)
    chunks = chunk(b"IHDR", head) + between + chunk(b"IDAT", zlib.compress(rows))
    return b"\x89PNG\r\n\x1a\n" + chunks + chunk(b"IEND", b"")


PNGS = [
    *((bits, 0, 1) for bits in (1, 2, 4, 8, 16)),
    *((bits, colour, n) for bits in (8, 16) for colour, n in ((2, 3), (4, 2), (6, 4))),
    *((bits, 3, 1) for bits in (1, 2, 4, 8)),
]


@pytest.mark.parametrize(("bits", "colour", "samples"), PNGS)
@pytest.mark.parametrize("laced", [False, True])
@pytest.mark.parametrize("key", [False, True])
@pytest.mark.parametrize("deep", [False, True])
def test_every_kind_of_png_is_read_as_its_numbers_say(
    tmp_path: Path, bits: int, colour: int, samples: int, laced: bool, key: bool, deep: bool
) -> None:
    most = 2**bits - 1
    whole = RNG.integers(0, most, (HEIGHT, WIDTH, samples), endpoint=True)
    between, right = b"", whole / most
    if colour in (4, 6):
        if key:
            return
        right = right[..., :-1] * right[..., -1:]
    if colour == 3:
        table = RNG.integers(0, 256, (2**bits, 3), np.uint8)
        between, right = chunk(b"PLTE", table.tobytes()), table[whole[..., 0]] / 255
        if key:
            opacity = RNG.integers(0, 256, 2**bits, np.uint8)
            between += chunk(b"tRNS", opacity.tobytes())
            right = right * (opacity[whole[..., 0]] / 255)[..., None]
    elif key:
        whole[:5] = whole[0, 0]
        whole[5, :, 0] = whole[0, 0, 0] ^ 1  # at 16 bits the high byte is that of the key
        between = chunk(b"tRNS", whole[0, 0].astype(">u2").tobytes())
        clear = (whole == whole[0, 0]).all(2, keepdims=True)
        right = np.where(clear, 0, whole / most)
    found = read(tmp_path / "x.png", png(whole, bits, colour, between, laced=laced), deep=deep)
    cut = bits == 16 and colour != 0 and not deep
    found = found[..., :1] if right.shape[2] == 1 else found
    # Colour and opacity are each cut by up to one step, and their product is rounded.
    assert np.abs(found - right).max() <= (2.51 / 255 if cut else EIGHT_BITS)
