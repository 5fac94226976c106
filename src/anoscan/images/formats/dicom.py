"""Read DICOM with pydicom: one image, or one for each frame.

Stored values become real ones, by rescale slope and intercept or a modality table. CT, PET and
nuclear medicine stay in their unit. Other values have none: the window of the file or its VOI table
brings different exposures to one scale.
"""

from __future__ import annotations

import functools
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from anoscan.core.errors import InputError
from anoscan.images.formats.picture import (
    DAMAGED,
    Opened,
    check_pages,
    check_size,
    damage,
    of_samples,
    reasons,
    regular,
)

SUFFIXES = ".dcm .dicom"
_MAGIC_AT, _MAGIC = 128, b"DICM"
_GROUPS = (b"\x02\x00", b"\x08\x00")  # a file without a preamble begins with one of these
_DEFLATED, _IMPLICIT, _EXPLICIT = (f"1.2.840.10008.1.2{end}" for end in (".1.99", "", ".1"))
_UNITS = ("CT", "PT", "NM")  # modalities whose values mean the same in every file
_GREYS = ("MONOCHROME1", "MONOCHROME2")
_TAGS = [
    *("Modality", "NumberOfFrames", "Rows", "Columns", "SamplesPerPixel", "PlanarConfiguration"),
    *("PhotometricInterpretation", "BitsAllocated", "BitsStored", "PixelRepresentation"),
    *("PixelPaddingValue", "PixelPaddingRangeLimit"),
    *("RescaleSlope", "RescaleIntercept", "RescaleType", "ModalityLUTSequence"),
    *("WindowCenter", "WindowWidth", "VOILUTFunction", "VOILUTSequence"),
    *("SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence"),
    *(
        f"{colour}PaletteColorLookupTable{part}"
        for colour in ("Red", "Green", "Blue", "SegmentedRed", "SegmentedGreen", "SegmentedBlue")
        for part in ("Descriptor", "Data")
        if part == "Data" or not colour.startswith("Segmented")
    ),
    *("ExtendedOffsetTable", "ExtendedOffsetTableLengths"),
]
# Encodings for which pydicom needs more than NumPy and Pillow, by the end of the transfer syntax.
_PACKAGES = {
    "4.51": ("12-bit JPEG", "pylibjpeg[libjpeg]"),
    "4.57": ("lossless JPEG", "pylibjpeg[libjpeg]"),
    "4.70": ("lossless JPEG", "pylibjpeg[libjpeg]"),
    "4.80": ("JPEG-LS", "pyjpegls"),
    "4.81": ("JPEG-LS", "pyjpegls"),
    "4.90": ("JPEG 2000", "pylibjpeg[openjpeg]"),
    "4.91": ("JPEG 2000", "pylibjpeg[openjpeg]"),
    "4.201": ("HTJ2K", "pylibjpeg[openjpeg]"),
    "4.202": ("HTJ2K", "pylibjpeg[openjpeg]"),
    "4.203": ("HTJ2K", "pylibjpeg[openjpeg]"),
}
_JPEG_2000 = tuple(f"1.2.840.10008.1.2.4.{end}" for end in ("90", "91", "201", "202", "203"))
_JP2 = b"\0\0\0\x0cjP  "
_CODESTREAM = b"jp2c"
_LACKING = re.compile("missing dependencies|not supported|Unable to de(code|compress)", re.I)


def begins(head: bytes, name: str) -> bool:
    """Whether these are the first bytes of a DICOM file; a .dcm may lack the preamble.

    The preamble may be the head of a TIFF, and the file both. Then its name decides.
    """
    if head[_MAGIC_AT : _MAGIC_AT + 4] == _MAGIC:
        return not name.endswith((".tif", ".tiff"))
    return name.endswith(tuple(SUFFIXES.split())) and head[:2] in _GROUPS


def is_named_without_suffix(path: Path) -> bool:
    """Whether a file is DICOM that has no ending or a number as one, as scanners write them."""
    ending = path.suffix[1:]
    if (ending and not ending.isdecimal()) or path.name.upper() == "DICOMDIR":
        return False
    try:
        regular(path)
        with path.open("rb") as source:
            return source.read(_MAGIC_AT + 4)[_MAGIC_AT:] == _MAGIC
    except (OSError, InputError):
        return False


def count(file: Path) -> int:
    """Number of frames in a file."""
    header = _header_of(file)
    with damage():
        frames = int(header.get("NumberOfFrames", None) or 1)
    if frames < 1:
        raise InputError(f"says that it has {frames} frames")
    check_pages(frames)
    return frames


def read(file: Path, page: int | None, draft_side: int, *, deep: bool) -> Opened:
    """Decode the only image of a file, or one frame; see `anoscan.images.formats.read`."""
    header, index = _header_of(file), (page or 1) - 1
    with damage():
        if "Rows" not in header or "Columns" not in header:
            raise InputError("is DICOM without an image")
        check_size(int(header.Columns), int(header.Rows))
        stored = _decoded(file, header, index)
        kind = str(header.PhotometricInterpretation)
        if kind == "PALETTE COLOR":
            from pydicom.pixels import apply_color_lut

            return of_samples(_narrow(apply_color_lut(stored, header)))
        if kind not in _GREYS:
            return of_samples(stored)
        if stored.dtype.kind == "u" and int(header.BitsAllocated) == 1:
            stored = stored.astype(bool)
        return _grey(stored, header, _Meaning.of(header, index), inverted=kind == _GREYS[0])


def _narrow(colours: NDArray[Any]) -> NDArray[Any]:
    """Reduce colours of a palette to 8 bits where only the upper 8 of their 16 bits are used."""
    wide = colours.dtype == np.uint16 and not (colours & 0xFF).any()
    return (colours >> 8).astype(np.uint8) if wide else colours


# --- header and pixels --------------------------------------------------------------------------


def _header_of(file: Path) -> Any:
    status = regular(file)
    return _header(file, status.st_size, status.st_mtime_ns)


@functools.lru_cache(maxsize=16)
def _header(file: Path, size: int, changed: int) -> Any:
    """Read the fields about pixels; `size` and `changed` (ns) keep versions of the file apart."""
    try:
        import pydicom
    except ImportError:
        raise InputError("is DICOM, which needs: pip install 'anoscan[dicom]'") from None
    with reasons(), file.open("rb") as source:
        start = source.read(2048)
    # pydicom inflates without a limit, so a small file could fill the memory.
    if _DEFLATED.encode() in start:
        raise InputError("is deflated DICOM, which is not read: save it in another encoding")
    with damage():
        return pydicom.dcmread(file, stop_before_pixels=True, force=True, specific_tags=_TAGS)


def _decoded(file: Path, header: Any, index: int) -> NDArray[Any]:
    """Decode the stored values of a frame, (rows, columns) or (rows, columns, 3)."""
    from pydicom.pixels import pixel_array

    syntax = header.file_meta.get("TransferSyntaxUID", None)
    if not syntax:
        implicit, _ = header.original_encoding
        syntax = _IMPLICIT if implicit else _EXPLICIT
    frames = int(header.get("NumberOfFrames", None) or 1)
    source: Any = str(file)
    if syntax in _JPEG_2000:
        source, frames = _checked_frame(file, header, index, frames), 1
    try:
        found: NDArray[Any] = pixel_array(
            source, index=index if frames > 1 else None, transfer_syntax_uid=syntax
        )
    except AttributeError as error:
        if "no pixel data" not in str(error):
            raise
        raise InputError("is DICOM without pixels") from None
    except (RuntimeError, NotImplementedError) as error:
        if not _LACKING.search(str(error)):
            raise
        name, package = _PACKAGES.get(str(syntax).removeprefix("1.2.840.10008.1.2."), ("", ""))
        if package:
            raise InputError(f"is DICOM in {name}, which needs: pip install '{package}'") from None
        raise InputError("is DICOM in an encoding that is not read") from None
    return found


def _checked_frame(file: Path, header: Any, index: int, frames: int) -> Any:
    """Return a JPEG 2000 frame as a dataset of its own, once its boxes are known to have a length.

    pydicom's parser of boxes never ends at one without.
    """
    import pydicom
    from pydicom.encaps import encapsulate, get_frame

    lengths = [header.get(f"ExtendedOffsetTable{part}", None) for part in ("", "Lengths")]
    with reasons(), file.open("rb") as source, damage():
        pydicom.dcmread(source, stop_before_pixels=True, force=True, specific_tags=[])
        if len(source.read(12)) < 12:  # tag, type and length of the pixels
            raise InputError("is DICOM without pixels")
        offsets = None if None in lengths else (lengths[0], lengths[1])
        frame = get_frame(source, index, extended_offsets=offsets, number_of_frames=frames)
    at = 12
    while frame.startswith(_JP2) and at < len(frame):
        length, name = int.from_bytes(frame[at : at + 4]), frame[at + 4 : at + 8]
        if name == _CODESTREAM:
            break
        if length < 8:
            raise InputError(DAMAGED)
        at += length
    alone = header.group_dataset(0x28)
    alone.file_meta = header.file_meta
    alone.add_new("NumberOfFrames", "IS", 1)  # assigning would change the shared element
    alone.PixelData = encapsulate([frame])
    alone["PixelData"].VR = "OB"
    return alone


# --- meaning of grey values ---------------------------------------------------------------------


@dataclass(frozen=True)
class _Meaning:
    """How the stored values of one frame become real ones.

    `window` (centre, width, function) and `table` (a VOI table) bring them to one scale; values
    that have a unit use neither.
    """

    slope: float
    intercept: float
    window: tuple[float, float, str] | None
    table: bool

    @classmethod
    def of(cls, header: Any, index: int) -> _Meaning:
        scaled = _macro(header, index, "PixelValueTransformationSequence")
        shown = _macro(header, index, "FrameVOILUTSequence")
        slope, intercept = scaled.get("RescaleSlope", None), scaled.get("RescaleIntercept", None)
        has_unit = header.get("Modality", "") in _UNITS or (
            scaled.get("RescaleType", None) or "US"
        ) not in ("US", "normalized")
        return cls(
            1.0 if slope is None else float(slope),
            0.0 if intercept is None else float(intercept),
            None if has_unit else _window(shown),
            not has_unit and "VOILUTSequence" in shown,
        )


def _macro(header: Any, index: int, name: str) -> Any:
    """Return part `name` of the header for a frame: its own, that of all frames, or the header."""
    own = header.get("PerFrameFunctionalGroupsSequence", None) or []
    shared = header.get("SharedFunctionalGroupsSequence", None) or []
    for group in (*own[index : index + 1], *shared[:1]):
        if sequence := group.get(name, None):
            return sequence[0]
    return header


def _window(shown: Any) -> tuple[float, float, str] | None:
    centre, width = (_first(shown.get(name, None)) for name in ("WindowCenter", "WindowWidth"))
    function = str(shown.get("VOILUTFunction", None) or "LINEAR")
    least = 1.0 if function == "LINEAR" else 0.0
    if centre is None or width is None or not width > least:
        return None
    return centre, width, function


def _first(value: Any) -> float | None:
    if value is None or value == "":
        return None
    return float(value if isinstance(value, str | int | float) else next(iter(value)))


def _grey(stored: NDArray[Any], header: Any, meaning: _Meaning, *, inverted: bool) -> Opened:
    if stored.dtype.kind in "iu":
        stored = _without_padding(stored, header, highest=inverted != (meaning.slope < 0))
        bits = int(header.get("BitsStored", 0) or 8 * stored.dtype.itemsize)
        low = -(2 ** (bits - 1)) if stored.dtype.kind == "i" else 0
        ends = np.array([low, low + 2**bits - 1], np.float64)
    else:
        ends = np.array([0.0, 1.0])
    plain = (meaning.slope, meaning.intercept) == (1, 0) and "ModalityLUTSequence" not in header
    if plain and meaning.window is None and not meaning.table:
        values = (ends.sum() - stored).astype(stored.dtype) if inverted else stored
        if stored.dtype == np.bool_:
            values = ~stored if inverted else stored
        return of_samples(values, full=(float(ends[0]), float(ends[1])))
    values = _values(stored, header, meaning)
    if meaning.window is not None:
        values = _windowed(values, *meaning.window)
        ends = np.array([0.0, 1.0])
    elif meaning.table or "ModalityLUTSequence" in header:
        ends = np.array([values.min(), values.max()])
    else:
        ends = ends * meaning.slope + meaning.intercept
    if inverted:
        values = ends.sum() - values
    low, high = float(ends.min()), float(ends.max())
    full = (low, high if high > low else low + 1)
    return of_samples(values, stored=stored.dtype, full=full)


def _values(stored: NDArray[Any], header: Any, meaning: _Meaning) -> NDArray[np.float64]:
    from pydicom.pixels import apply_modality_lut, apply_voi_lut

    if "ModalityLUTSequence" in header:
        stored = apply_modality_lut(stored, header)
    values = stored * meaning.slope + meaning.intercept
    if meaning.window is None and meaning.table:
        values = apply_voi_lut(values.round().astype(np.int64), header)
    return np.asarray(values, np.float64)


def _windowed(
    values: NDArray[np.float64], centre: float, width: float, function: str
) -> NDArray[np.float64]:
    """Scale values so that the window runs from 0 to 1 (PS3.3 C.11.2.1).

    Values outside a linear window are not cut off.
    """
    if function == "SIGMOID":
        return np.asarray(1 / (1 + np.exp(np.clip(-4 * (values - centre) / width, -50, 50))))
    if function == "LINEAR_EXACT":
        return (values - centre) / width + 0.5
    return (values - (centre - 0.5)) / (width - 1) + 0.5


def _without_padding(stored: NDArray[Any], header: Any, *, highest: bool) -> NDArray[Any]:
    """Replace padding, which only fills the frame, by the lowest stored value of the image.

    With `highest`, it is the highest, because high stored values are dark in this image.
    """
    ends = [header.get(name, None) for name in ("PixelPaddingValue", "PixelPaddingRangeLimit")]
    signed = stored.dtype.kind == "i"
    numbers = [
        int.from_bytes(end, "little", signed=signed) if isinstance(end, bytes) else int(end)
        for end in ends
        if end is not None
    ]
    if not numbers or ends[0] is None:
        return stored
    padding = (stored >= min(numbers)) & (stored <= max(numbers))
    if not padding.any() or padding.all():
        return stored
    inside = stored[~padding]
    return np.where(padding, inside.max() if highest else inside.min(), stored)
