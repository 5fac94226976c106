"""Make small valid files of every format that the program reads."""

from __future__ import annotations

import io
import struct
import tempfile
import zlib
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import imagecodecs
import nibabel
import numpy as np
import pydicom
import tifffile
from numpy.typing import NDArray
from PIL import Image
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate

Array = NDArray[Any]
SIDE = 24  # pixels; some formats need a few blocks of eight or sixteen


class Sample(NamedTuple):
    """A valid file: what it is, its suffix with the dot, and its bytes."""

    name: str
    suffix: str
    data: bytes


@cache
def every() -> tuple[Sample, ...]:
    """Return a sample of each kind, always the same ones in the same order."""
    return (*_pngs(), *_by_pillow(), *_tiffs(), *_dicoms(), *_niftis(), *_arrays())


def _noise(*shape: int, kind: str = "uint8") -> Array:
    """Smooth values with some noise, so that compressions find something to do."""
    rng = np.random.default_rng(0)
    ramp = np.arange(np.prod(shape)).reshape(shape) % 251 + rng.integers(0, 4, shape)
    if np.dtype(kind).kind == "f":
        return (ramp / 255).astype(kind)
    size = np.dtype(kind).itemsize
    return (ramp.astype(np.int64) << 8 * (size - 1) >> (np.dtype(kind).kind == "i")).astype(kind)


# --- PNG ----------------------------------------------------------------------------------------

_PNG = b"\x89PNG\r\n\x1a\n"
_COLOURS = {0: "grey", 2: "RGB", 3: "palette", 4: "grey-alpha", 6: "RGBA"}
_SAMPLES = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}
_ADAM7 = (  # first column and step, first row and step, of each pass
    (0, 8, 0, 8), (4, 8, 0, 8), (0, 4, 4, 8), (2, 4, 0, 4), (0, 2, 2, 4), (1, 2, 0, 2), (0, 1, 1, 2)
)  # fmt: skip


def chunk(kind: bytes, body: bytes) -> bytes:
    """Return a chunk of a PNG with its length and CRC."""
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png(bits: int, colour: int, *extra: bytes, interlaced: bool = False) -> bytes:
    """Return a PNG of noise, with chunks that stand before its pixels."""
    rng = np.random.default_rng(bits + colour)
    passes = [(SIDE, SIDE)]
    if interlaced:
        passes = [(len(range(y, SIDE, dy)), len(range(x, SIDE, dx))) for x, dx, y, dy in _ADAM7]
    rows = b""
    for height, width in passes:
        stride = (width * _SAMPLES[colour] * bits + 7) // 8
        for row in range(height):
            rows += bytes([row % 5]) + rng.integers(0, 4, stride, dtype=np.uint8).tobytes()
    head = struct.pack(">IIBBBBB", SIDE, SIDE, bits, colour, 0, 0, interlaced)
    palette = [chunk(b"PLTE", bytes(range(48)))] if colour == 3 else []
    body = zlib.compress(rows)
    parts = [chunk(b"IHDR", head), *palette, *extra]
    parts += [chunk(b"IDAT", body[:40]), chunk(b"IDAT", body[40:]), chunk(b"IEND", b"")]
    return _PNG + b"".join(parts)


def _pngs() -> Iterator[Sample]:
    depths = {0: (1, 2, 4, 8, 16), 2: (8, 16), 3: (1, 2, 4, 8), 4: (8, 16), 6: (8, 16)}
    key = {0: b"\0\1", 2: b"\0\1\0\1\0\1", 3: b"\0\x80"}
    for colour, bits in (
        (colour, bits) for colour, all_bits in depths.items() for bits in all_bits
    ):
        name = f"PNG {_COLOURS[colour]} {bits}"
        yield Sample(name, ".png", png(bits, colour))
        yield Sample(f"{name} interlaced", ".png", png(bits, colour, interlaced=True))
        if colour in key:
            yield Sample(f"{name} tRNS", ".png", png(bits, colour, chunk(b"tRNS", key[colour])))
    gamma = chunk(b"gAMA", struct.pack(">I", 45455)), chunk(b"pHYs", b"\0\0\1\0\0\0\1\0\1")
    text = chunk(b"tEXt", b"Title\0noise"), chunk(b"zTXt", b"T\0\0" + zlib.compress(b"a" * 99))
    upright = chunk(b"eXIf", b"MM\0*\0\0\0\x08\0\1\x01\x12\0\3\0\0\0\1\0\6\0\0\0\0\0\0")
    yield Sample("PNG RGB 8 chunks", ".png", png(8, 2, *gamma, *text, upright))
    yield Sample("PNG RGB 16 chunks", ".png", png(16, 2, *gamma, *text, upright))


# --- what Pillow writes -------------------------------------------------------------------------


def _saved(image: Image.Image, kind: str, **how: Any) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **how)
    return stream.getvalue()


def _by_pillow() -> Iterator[Sample]:
    rgb = Image.fromarray(_noise(SIDE, SIDE, 3))
    grey, clear = rgb.convert("L"), rgb.convert("RGBA")
    clear.putalpha(grey)
    several: dict[str, Any] = {"save_all": True, "append_images": [rgb.rotate(90)]}
    turned = Image.Exif()
    turned[0x112] = 6
    made: list[tuple[str, Image.Image, str, dict[str, Any]]] = [
        ("JPEG grey", grey, ".jpg", {}),
        *((f"JPEG 4:{n}", rgb, ".jpg", {"subsampling": n}) for n in range(3)),
        ("JPEG progressive", rgb, ".jpg", {"progressive": True, "exif": turned}),
        ("JPEG restarts", rgb, ".jpg", {"restart_marker_blocks": 2, "optimize": True}),
        ("JPEG CMYK", rgb.convert("CMYK"), ".jpg", {}),
        ("BMP 1", rgb.convert("1"), ".bmp", {}),
        *((f"BMP {i.mode}", i, ".bmp", {}) for i in (grey, rgb.quantize(16), rgb, clear)),
        ("GIF grey", grey, ".gif", {}),
        ("GIF colours", rgb.quantize(32), ".gif", {"transparency": 1}),
        ("GIF frames", rgb.quantize(8), ".gif", {**several, "interlace": 1}),
        ("WebP", rgb, ".webp", {}),
        ("WebP lossless", clear, ".webp", {"lossless": True}),
        ("WebP alpha", clear, ".webp", {"exif": turned}),
        ("WebP frames", rgb, ".webp", several),
        ("APNG", rgb, ".png", several),
        ("PBM", rgb.convert("1"), ".pbm", {}),
        ("PGM 8", grey, ".pgm", {}),
        ("PGM 16", Image.fromarray(_noise(SIDE, SIDE, kind="uint16")), ".pgm", {}),
        ("PPM", rgb, ".ppm", {}),
    ]
    for name, image, suffix, how in made:
        kind = {".jpg": "JPEG", ".bmp": "BMP", ".gif": "GIF", ".webp": "WEBP", ".png": "PNG"}
        yield Sample(name, suffix, _saved(image, kind.get(suffix, "PPM"), **how))
    values = " ".join(str(value) for value in _noise(8, 8).ravel())
    yield Sample("PGM in words", ".pgm", f"P2 8 8 255 {values}\n".encode())
    yield Sample("PGM 10 bits", ".pgm", b"P5 8 8 1023\n" + b"\1\2" * 64)


# --- TIFF ---------------------------------------------------------------------------------------

_CODECS = ("lzw", "adobe_deflate", "packbits", "lzma", "zstd", "lerc", "jpeg2000", "webp", "png")


def _tiff(samples: Array, **how: Any) -> bytes:
    stream = io.BytesIO()
    tifffile.imwrite(stream, samples, **{"metadata": None} | how)
    return stream.getvalue()


def _tiffs() -> Iterator[Sample]:
    grey, rgb = (SIDE, SIDE), (SIDE, SIDE, 3)
    for order in "<>":
        for kind in ("uint8", "int8", "uint16", "int16", "uint32", "float16", "float32", "float64"):
            data = _tiff(_noise(*grey, kind=kind), byteorder=order)
            yield Sample(f"TIFF {order}{kind}", ".tif", data)
            how: dict[str, Any] = {"compression": "lzw", "predictor": True, "byteorder": order}
            data = _tiff(_noise(*rgb, kind=kind), photometric="rgb", **how)
            yield Sample(f"TIFF {order}{kind} RGB lzw predictor", ".tif", data)
    whole: dict[str, Any] = {"photometric": "rgb"}
    for codec in _CODECS:
        yield Sample(f"TIFF {codec}", ".tif", _tiff(_noise(*rgb), **whole, compression=codec))
    planes, four = _noise(3, *grey), _noise(*grey, 4)
    made: dict[str, tuple[Array, dict[str, Any]]] = {
        "jpeg": (_noise(*rgb), {**whole, "compression": "jpeg"}),
        "planes": (planes, {**whole, "planarconfig": "separate"}),
        "planes 16": (planes.astype("u2"), {**whole, "planarconfig": "separate"}),
        "alpha": (four, {**whole, "extrasamples": ["unassalpha"]}),
        "associated": (four, {**whole, "extrasamples": ["assocalpha"]}),
        "white is zero": (_noise(*grey), {"photometric": "miniswhite"}),
        "1 bit": (_noise(*grey) > 100, {}),
        "tiles": (_noise(48, 48), {"tile": (16, 16), "compression": "zlib"}),
        "strips": (_noise(*grey), {"rowsperstrip": 5}),
        "big": (_noise(*grey), {"bigtiff": True}),
        "pages": (_noise(3, *grey), {"photometric": "minisblack"}),
        "12 bits": (_noise(*grey, kind="uint16") >> 4, {"bitspersample": 12}),
        "turned": (_noise(*grey), {"extratags": [(274, 3, 1, 6, True)]}),
        "described": (_noise(*grey), {"description": "words", "resolution": (72, 72)}),
    }
    for name, (samples, how) in made.items():
        yield Sample(f"TIFF {name}", ".tif", _tiff(samples, **how))
    rgb_image = Image.fromarray(_noise(*rgb))
    bilevel = rgb_image.convert("1")
    for codec in ("group3", "group4", "tiff_ccitt"):
        yield Sample(f"TIFF {codec}", ".tif", _saved(bilevel, "TIFF", compression=codec))
    for mode in ("P", "CMYK", "LAB", "YCbCr"):
        image = rgb_image.convert("RGB").convert(mode) if mode != "LAB" else _lab(rgb_image)
        yield Sample(f"TIFF {mode}", ".tif", _saved(image, "TIFF"))


def _lab(image: Image.Image) -> Image.Image:
    return Image.frombytes("LAB", image.size, image.tobytes())


# --- DICOM, NIfTI, NPY --------------------------------------------------------------------------


def _dicom(pixels: Array, syntax: str = "", coded: bytes | bytearray = b"", **fields: Any) -> bytes:
    colours = 3 if pixels.shape[-1] == 3 else 1
    shape = pixels.shape[:-1] if colours == 3 else pixels.shape
    bits = 8 * pixels.dtype.itemsize
    made = Dataset()
    made.SOPClassUID, made.SOPInstanceUID = "1.2.840.10008.5.1.4.1.1.7", "1.2.3.4"
    made.Modality, made.SamplesPerPixel = "OT", colours
    made.Rows, made.Columns = shape[-2:]
    made.PhotometricInterpretation = "RGB" if colours == 3 else "MONOCHROME2"
    made.BitsAllocated = made.BitsStored = bits
    made.HighBit, made.PixelRepresentation = bits - 1, int(pixels.dtype.kind == "i")
    if colours == 3:
        made.PlanarConfiguration = 0
    if len(shape) == 3:
        made.NumberOfFrames = shape[0]
    for name, value in fields.items():
        setattr(made, name, value)
    made.file_meta = FileMetaDataset()
    made.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
    made.PixelData = pixels.tobytes()
    made["PixelData"].VR = "OB" if coded or bits == 8 else "OW"
    if coded:
        made.PixelData = encapsulate([bytes(coded)])
        made.file_meta.TransferSyntaxUID = pydicom.uid.UID(syntax)
    if syntax == "rle":
        made.compress(pydicom.uid.RLELossless, generate_instance_uid=False)
    stream = io.BytesIO()
    made.save_as(stream, enforce_file_format=True)
    return stream.getvalue()


def _dicoms() -> Iterator[Sample]:
    deep, grey, rgb = _noise(SIDE, SIDE, kind="uint16"), _noise(SIDE, SIDE), _noise(SIDE, SIDE, 3)
    lut: dict[str, Any] = {"PhotometricInterpretation": "PALETTE COLOR"}
    for colour in ("Red", "Green", "Blue"):
        lut[f"{colour}PaletteColorLookupTableDescriptor"] = [256, 0, 8]
        lut[f"{colour}PaletteColorLookupTableData"] = bytes(range(256))
    scaled: dict[str, Any] = {
        "Modality": "CT",
        "RescaleSlope": 2,
        "RescaleIntercept": -1024,
        "WindowCenter": 40,
    }
    ycc: dict[str, Any] = {"PhotometricInterpretation": "YBR_FULL_422"}
    uid = "1.2.840.10008.1.2.4."
    made: dict[str, bytes] = {
        "8": _dicom(grey),
        "16": _dicom(deep, **scaled),
        "12 signed": _dicom(deep.view("i2") >> 4, BitsStored=12, HighBit=11),
        "white is zero": _dicom(deep, PhotometricInterpretation="MONOCHROME1"),
        "RGB": _dicom(rgb),
        "palette": _dicom(grey, **lut),
        "frames": _dicom(_noise(3, SIDE, SIDE)),
        "RLE": _dicom(deep, "rle"),
        "JPEG": _dicom(rgb, uid + "50", imagecodecs.jpeg_encode(rgb), **ycc),
        "lossless JPEG": _dicom(deep, uid + "70", imagecodecs.ljpeg_encode(deep, bitspersample=16)),
        "JPEG-LS": _dicom(deep, uid + "80", imagecodecs.jpegls_encode(deep)),
        "JPEG 2000": _dicom(deep, uid + "90", imagecodecs.jpeg2k_encode(deep)),
        "JPEG 2000 stream": _dicom(
            deep, uid + "90", imagecodecs.jpeg2k_encode(deep, codecformat="j2k")
        ),
    }
    for name, data in made.items():
        yield Sample(f"DICOM {name}", ".dcm", data)


def _niftis() -> Iterator[Sample]:
    with tempfile.TemporaryDirectory() as folder:
        for form, kind in (("1", "uint8"), ("1", "int16"), ("1", "float32"), ("2", "uint16")):
            for suffix in (".nii", ".nii.gz"):
                voxels = _noise(SIDE, SIDE, 2, kind=kind)
                made = nibabel.Nifti1Image if form == "1" else nibabel.Nifti2Image
                image = made(voxels, np.eye(4), dtype=voxels.dtype)
                if kind == "int16":
                    image.header.set_slope_inter(2, -10)
                file = Path(folder) / f"x{suffix}"
                image.to_filename(file)
                yield Sample(f"NIfTI-{form} {kind}{suffix}", suffix, file.read_bytes())


def _arrays() -> Iterator[Sample]:
    shapes: dict[str, tuple[int, ...]] = {
        "grey": (SIDE, SIDE), "RGB": (SIDE, SIDE, 3), "stack": (3, SIDE, SIDE)
    }  # fmt: skip
    for shape, sides in shapes.items():
        for kind in ("uint8", "bool", "uint16", ">i4", "float32", "float64"):
            samples = _noise(*sides).astype(kind) if kind == "bool" else _noise(*sides, kind=kind)
            for order in ("C", "F"):
                stream = io.BytesIO()
                np.save(stream, np.asarray(samples, order=order))
                yield Sample(f"NPY {shape} {kind} {order}", ".npy", stream.getvalue())
    for name, save in (("stored", np.savez), ("compressed", np.savez_compressed)):
        stream = io.BytesIO()
        save(stream, a=_noise(SIDE, SIDE), b=_noise(SIDE, SIDE, kind="float32"))
        yield Sample(f"NPZ {name}", ".npz", stream.getvalue())
