"""Files that once were misread, refused though valid, or ended the process; one test a fault."""

from __future__ import annotations

import io
import itertools
import random
import struct
import time
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from PIL import Image

from anoscan.core.errors import InputError
from anoscan.images import formats
from anoscan.images.files import find
from anoscan.images.formats.picture import Opened
from tests.images.formats.test_dicom import write_dicom
from tests.images.formats.test_products import chunk, png, seen, tags_of, tiff

RNG = np.random.default_rng(0)
GREY = RNG.integers(0, 256, (19, 23), np.uint8)
COLOUR = RNG.integers(0, 65536, (19, 23, 3), np.uint16)


def opened(file: Path, content: bytes, page: int | None = None) -> Opened:
    file.write_bytes(content)
    return formats.read(file, page, draft_side=16, deep=True)


def reason(file: Path, content: bytes) -> str:
    with pytest.raises(InputError) as caught:
        opened(file, content)
    return caught.value.message


def saved(picture: Any, form: str, **options: Any) -> bytes:
    target = io.BytesIO()
    Image.fromarray(picture).save(target, form, **options)
    return target.getvalue()


# --- PNG ----------------------------------------------------------------------------------------


def with_checksums(content: bytearray) -> bytes:
    """The chunks of a PNG with checksums that fit again, as far as the lengths allow."""
    at = 8
    while at + 12 <= len(content):
        end = at + 8 + int.from_bytes(content[at : at + 4])
        if end + 4 > len(content):
            break
        struct.pack_into(">I", content, end, zlib.crc32(bytes(content[at + 4 : end])))
        at = end + 4
    return bytes(content)


def test_damaged_pngs_of_16_bits_end_no_process_and_print_nothing(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    generator, refused = random.Random(0), 0
    for colour, samples in ((2, 3), (4, 2), (6, 4)):
        whole = RNG.integers(0, 65536, (19, 23, samples))
        good = png(whole, 16, colour, chunk(b"iCCP", b"x\0\0no") + chunk(b"tIME", b"short"))
        for _ in range(100):
            broken = bytearray(good)
            for _ in range(generator.randint(1, 4)):
                broken[generator.randrange(8, len(broken))] = generator.randrange(256)
            try:
                opened(tmp_path / "x.png", with_checksums(broken))
            except InputError:
                refused += 1
    assert refused > 100
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    "rows", [b"", bytes(19 * 139 - 1), bytes(19 * 139 + 1), b"\x09" + bytes(19 * 139 - 1)]
)
def test_rows_of_a_png_must_fill_it_and_have_filters_that_exist(
    tmp_path: Path, rows: bytes
) -> None:
    content = png(COLOUR, 16, 2)
    start = content.index(b"IDAT") - 4
    data = content[:start] + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    assert reason(tmp_path / "x.png", data) in ("damaged image", "truncated image")


# --- TIFF ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("power", [40, 62, 63])
def test_a_directory_beyond_the_file_is_damage_and_no_impossible_name(
    tmp_path: Path, power: int
) -> None:
    content = b"II+\0\x08\0\0\0" + struct.pack("<Q", 2**power) + bytes(200)
    assert reason(tmp_path / "x.tif", content) == "damaged image"


def test_damaged_tiffs_print_nothing(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    generator = random.Random(0)
    for compression in ("lzw", "zlib", "packbits", "jpeg"):
        target = io.BytesIO()
        tifffile.imwrite(
            target, COLOUR.astype(np.uint8), photometric="rgb", compression=compression
        )
        for _ in range(60):
            broken = bytearray(target.getvalue())
            broken[generator.randrange(8, len(broken))] ^= 1 << generator.randrange(8)
            (tmp_path / "x.tif").write_bytes(broken)
            for image in find([tmp_path / "x.tif"]):
                try:
                    formats.read(image.file, image.page, draft_side=16, deep=True)
                except InputError:
                    continue
    assert capfd.readouterr() == ("", "")


def test_a_jpeg_in_a_tiff_that_lacks_its_end_is_truncated(tmp_path: Path) -> None:
    inner = saved(GREY, "JPEG", quality=95)
    tags = tags_of([8], 1, compression=7)
    assert seen(opened(tmp_path / "x.tif", tiff([inner], tags))).shape[:2] == (19, 23)
    assert reason(tmp_path / "x.tif", tiff([inner[:-40]], tags)) == "truncated image"


def test_webp_and_old_jpeg_in_tiffs_are_read(tmp_path: Path) -> None:
    webp = saved(COLOUR.astype(np.uint8), "WEBP", lossless=True)
    found = opened(tmp_path / "a.tif", tiff([webp], tags_of([8] * 3, 2, compression=50001)))
    np.testing.assert_array_equal(seen(found) * 255, COLOUR.astype(np.uint8))
    smooth = np.uint8(np.add.outer(np.arange(19), np.arange(23)) * 5)
    inner = saved(smooth, "JPEG", quality=95)
    old = tags_of([8], 1, compression=6)
    old |= {512: (3, [1]), 513: (4, [8]), 514: (4, [len(inner)])}
    found = opened(tmp_path / "b.tif", tiff([inner], old))
    assert np.abs(seen(found)[..., 0] * 255 - smooth).max() < 6


@pytest.mark.parametrize(
    ("tags", "feature"),
    [
        (tags_of([8] * 3, 32803), "colours as CFA"),
        (tags_of([16], 1, form=4), "samples of 16 bits in format VOID"),
        (tags_of([16] * 3, 6), "YCbCr of 16 bits"),
        (tags_of([8], 1, compression=34676), "SGILOG compression"),
        (tags_of([12], 1, compression=8) | {317: (3, [2])}, "predictor HORIZONTAL of 12 bits"),
        (tags_of([8] * 4, 5) | {332: (3, [2])}, "inks that are not CMYK"),
    ],
)
def test_what_is_not_read_is_named(tmp_path: Path, tags: Any, feature: str) -> None:
    said = reason(tmp_path / "x.tif", tiff([bytes(9999)], tags))
    assert said == f"is a TIFF with {feature}, which is not read: save it as grey or RGB"


# --- JPEG, BMP, PNM, endings --------------------------------------------------------------------


def lossless_jpeg(samples: np.ndarray[Any, Any], bits: int) -> bytes:
    """Lossless JPEG of grey levels, each predicted by its left neighbour."""
    planes = samples.astype(np.int64)
    before = np.empty_like(planes)
    before[:, 1:], before[1:, 0], before[0, 0] = planes[:, :-1], planes[:-1, 0], 2 ** (bits - 1)
    stream = ""
    for error in (planes - before).ravel().tolist():
        size = abs(error).bit_length()
        stream += format(size, "05b")
        stream += format(error if error > 0 else error + 2**size - 1, f"0{size}b") if size else ""
    stream += "1" * (-len(stream) % 8)
    scan = int(stream, 2).to_bytes(len(stream) // 8).replace(b"\xff", b"\xff\0")
    frame = struct.pack(">BHHB", bits, *samples.shape, 1) + b"\x01\x11\0"
    parts = ((0xC3, frame), (0xC4, b"\0" + bytes([0, 0, 0, 0, 17] + [0] * 11) + bytes(range(17))))
    segments = (*parts, (0xDA, b"\x01\x01\0\x01\0\0"))
    return (
        b"\xff\xd8"
        + b"".join(bytes([255, n]) + struct.pack(">H", len(d) + 2) + d for n, d in segments)
        + scan
        + b"\xff\xd9"
    )


@pytest.mark.parametrize("bits", [8, 12])
def test_lossless_jpeg_larger_than_the_draft_is_read(tmp_path: Path, bits: int) -> None:
    samples = RNG.integers(0, 2**bits, (80, 90))
    found = seen(opened(tmp_path / "x.jpg", lossless_jpeg(samples, bits)))
    np.testing.assert_allclose(found[..., 0], samples / (2**bits - 1), atol=1e-6)


def test_a_bmp_with_other_masks_is_refused_by_name(tmp_path: Path) -> None:
    masks = struct.pack("<IIII", 0x3FF00000, 0xFFC00, 0x3FF, 0) + bytes(52)
    head = struct.pack("<IiiHHIIiiII", 108, 8, 8, 1, 32, 3, 256, 0, 0, 0, 0) + masks
    content = b"BM" + struct.pack("<IHHI", 378, 0, 0, 122) + head + bytes(256)
    said = "is a BMP whose layout of bits is not read: save it as PNG"
    assert reason(tmp_path / "x.bmp", content) == said


@pytest.mark.parametrize("most", [1, 9, 100, 255, 256, 1023, 4095, 65535])
@pytest.mark.parametrize("form", [2, 3, 5, 6])
def test_pnm_is_scaled_by_its_maximum_as_pillow_does_but_fast(
    tmp_path: Path, most: int, form: int
) -> None:
    shape = (300, 400, 3 if form in (3, 6) else 1)
    whole = RNG.integers(0, most, shape, endpoint=True)
    data = whole.astype(">u2" if most > 255 else "u1").tobytes()
    if form < 4:
        data = " ".join(map(str, whole.ravel())).encode()
    content = b"P%d\n# by hand\n%d %d\n%d\n" % (form, 400, 300, most) + data
    start = time.process_time()
    picture = opened(tmp_path / "x.pnm", content).picture
    assert time.process_time() - start < 0.4  # Pillow needs 1.5 s a megapixel
    known = np.asarray(Image.open(tmp_path / "x.pnm"))
    np.testing.assert_array_equal(np.asarray(picture), known)


def test_folders_give_images_of_rarer_endings(tmp_path: Path) -> None:
    bmp = saved(GREY, "BMP")
    jpeg, deep = saved(GREY, "JPEG"), tiff([GREY.tobytes()], tags_of([8], 1))
    target = io.BytesIO()
    np.savez(target, GREY)
    files = {"a.JFIF": jpeg, "b.jpe": jpeg, "c.dib": bmp, "d.dib": bmp[14:], "e.btf": deep}
    files |= {"f.apng": saved(GREY, "PNG"), "g.npz": target.getvalue()}
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    found = find([tmp_path])
    assert [image.inside for image in found] == sorted(files)
    for image in found:
        values = seen(formats.read(image.file, None, draft_side=16, deep=True))[..., 0] * 255
        assert np.abs(values - GREY).mean() < (20 if image.inside in ("a.JFIF", "b.jpe") else 1e-6)


# --- NumPy arrays -------------------------------------------------------------------------------


def test_an_array_whose_numbers_are_arrays_is_damage(tmp_path: Path) -> None:
    header = b"{'descr': '8f8', 'fortran_order': True, 'shape': (2, 2), }\n"
    content = b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header + bytes(256)
    assert reason(tmp_path / "x.npy", content) == "damaged image"


def test_an_error_that_no_reader_expects_costs_its_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: Any, **__: Any) -> Any:
        raise RuntimeError("of a library")

    monkeypatch.setattr(formats.png, "read", broken)
    monkeypatch.setattr(formats.png, "count", broken)
    file = tmp_path / "x.png"
    assert reason(file, saved(GREY, "PNG")) == "damaged image"
    assert formats.count(file) == 1


def test_a_truncated_array_is_refused_and_one_that_shrinks_ends_no_process(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", RNG.random((64, 64)))
    whole = (tmp_path / "x.npy").read_bytes()
    for length in (len(whole) - 1, 9000, 128):
        assert reason(tmp_path / "x.npy", whole[:length]) == "truncated image"
    (tmp_path / "x.npy").write_bytes(whole)
    result = formats.read(tmp_path / "x.npy", None, draft_side=16, deep=True)
    (tmp_path / "x.npy").write_bytes(b"")
    assert np.isfinite(np.asarray(result.picture)).all()


def test_arrays_of_a_zip_file_are_pages_and_one_that_is_none_stops_no_other(tmp_path: Path) -> None:
    stack, by_columns = RNG.random((3, 9, 8)), np.asfortranarray(RNG.random((5, 9, 8)))
    for save in (np.savez, np.savez_compressed):
        save(
            tmp_path / "x.npz",
            images=stack[..., None],
            more=by_columns,
            labels=np.arange(3),
            odd=np.full((9, 8), None, dtype=object),
            last=stack[0],
        )
        found = find([tmp_path])
        assert [image.page for image in found] == list(range(1, 12))
        for page, right in zip((*range(1, 9), 11), (*stack, *by_columns, stack[0]), strict=True):
            picture = formats.read(tmp_path / "x.npz", page, draft_side=16, deep=True).picture
            np.testing.assert_allclose(np.asarray(picture), right, atol=1e-6)
        for page, said in ((9, "labels.npy: is an array of 3:"), (10, "odd.npy: holds Python obj")):
            with pytest.raises(InputError, match=said):
                formats.read(tmp_path / "x.npz", page, draft_side=16, deep=True)


def test_a_header_may_not_claim_more_than_the_file(tmp_path: Path) -> None:
    for shape in ((10**7, 10**4), (10**9, 4, 4), (-5, 4), (4, 4, 10**12)):
        header = io.BytesIO()
        described = {"descr": "<f4", "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(header, described)
        assert reason(tmp_path / "x.npy", header.getvalue() + bytes(4096))


# --- NIfTI and DICOM ----------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(16, 16, 4 * 10**9), (10**6,) * 3, (16, 16, -5), (16, 16, 99)])
@pytest.mark.parametrize("form", [1, 2])
@pytest.mark.parametrize("packed", [False, True])
def test_volumes_may_not_claim_more_than_the_file(
    tmp_path: Path, shape: tuple[int, ...], form: int, packed: bool
) -> None:
    nibabel = pytest.importorskip("nibabel")
    import gzip

    header = (nibabel.Nifti1Header if form == 1 else nibabel.Nifti2Header)()
    if max(shape) > 32_767 and form == 1:
        shape = (32_767,) * 3
    header["dim"][:4], header["dim"][4:] = (3, *shape), 1
    header["datatype"], header["bitpix"] = 2, 8
    header["magic"], header["vox_offset"] = (
        (b"n+1", 352) if form == 1 else (b"n+2\0\r\n\x1a\n", 544)
    )
    content = header.binaryblock + bytes(104)
    name = "x.nii.gz" if packed else "x.nii"
    (tmp_path / name).write_bytes(gzip.compress(content) if packed else content)
    start = time.process_time()
    assert len(find([tmp_path])) < 100
    with pytest.raises(InputError, match=r"slices|truncated|volume"):
        formats.read(tmp_path / name, 1, draft_side=16, deep=True)
    assert time.process_time() - start < 1


@pytest.mark.parametrize("length", [0, 1, 4])
def test_boxes_of_jpeg_2000_have_a_length(tmp_path: Path, length: int) -> None:
    pytest.importorskip("pydicom")
    frame = b"\0\0\0\x0cjP  \r\n\x87\n" + struct.pack(">I4s", length, b"free") + bytes(64)
    file = write_dicom(tmp_path / "x.dcm", GREY, "1.2.840.10008.1.2.4.90")
    content = file.read_bytes()
    start = content.index(b"\xfe\xff\x00\xe0", content.index(b"\xfe\xff\x00\xe0") + 4)
    content = content[: start + 4] + struct.pack("<I", len(frame)) + frame
    content += b"\xfe\xff\xdd\xe0\0\0\0\0"
    assert reason(file, content) == "damaged image"
    # A table of offsets that lies does not lead pydicom to another frame than the one looked at.
    table = content.index(b"\xfe\xff\x00\xe0")
    lying = content[:table] + b"\xfe\xff\x00\xe0\4\0\0\0\0\0\0\1" + content[start:]
    assert reason(file, lying) == "damaged image"


def test_dicom_without_pixels_says_so(tmp_path: Path) -> None:
    pydicom = pytest.importorskip("pydicom")
    data = pydicom.dcmread(write_dicom(tmp_path / "x.dcm", GREY))
    del data.PixelData
    data.save_as(tmp_path / "x.dcm")
    content = (tmp_path / "x.dcm").read_bytes()
    assert reason(tmp_path / "x.dcm", content) == "is DICOM without pixels"


def test_palettes_of_dicom_in_segments_are_read(tmp_path: Path) -> None:
    pytest.importorskip("pydicom")
    segments = struct.pack("<6H", 0, 1, 0, 1, 255, 65535)  # a line from 0 to 65535
    fields: dict[str, Any] = {"PhotometricInterpretation": "PALETTE COLOR"}
    for colour in ("Red", "Green", "Blue"):
        fields[f"{colour}PaletteColorLookupTableDescriptor"] = [256, 0, 16]
        fields[f"Segmented{colour}PaletteColorLookupTableData"] = segments
    file = write_dicom(tmp_path / "x.dcm", GREY, **fields)
    found = seen(opened(file, file.read_bytes()))
    np.testing.assert_allclose(found[..., 1], GREY / 255, atol=1e-3)


@pytest.mark.parametrize(
    ("photometric", "slope"), list(itertools.product(("MONOCHROME1", "MONOCHROME2"), (1, -2)))
)
def test_padding_is_dark_in_the_result_also_where_white_is_low(
    tmp_path: Path, photometric: str, slope: int
) -> None:
    pytest.importorskip("pydicom")
    stored = RNG.integers(100, 4000, (19, 23)).astype(np.int16)
    stored[:4] = -2000
    file = write_dicom(
        tmp_path / "x.dcm",
        stored,
        PhotometricInterpretation=photometric,
        PixelPaddingValue=-2000,
        RescaleSlope=slope,
        RescaleIntercept=0,
    )
    values = seen(opened(file, file.read_bytes()))[..., 0]
    np.testing.assert_allclose(values[:4], values[4:].min(), atol=1e-6)


@pytest.mark.parametrize("frames", [1, 3])
@pytest.mark.parametrize("colours", [1, 3])
def test_frames_of_jpeg_2000_are_read_one_by_one(tmp_path: Path, frames: int, colours: int) -> None:
    pytest.importorskip("pydicom")
    import imagecodecs
    from pydicom.encaps import encapsulate

    shape = (frames, 19, 23, 3) if colours == 3 else (frames, 19, 23)
    stored = RNG.integers(0, 256, shape, np.uint8)
    streams = [imagecodecs.jpeg2k_encode(one, codecformat="j2k", reversible=True) for one in stored]
    file = write_dicom(
        tmp_path / "x.dcm", stored if frames > 1 else stored[0], "1.2.840.10008.1.2.4.90"
    )
    import pydicom

    data = pydicom.dcmread(file)
    data.PixelData = encapsulate(streams)
    data.save_as(file)
    for page, one in enumerate(stored, 1):
        found = formats.read(file, page if frames > 1 else None, draft_side=16, deep=True)
        np.testing.assert_array_equal(np.asarray(found.picture), one)
