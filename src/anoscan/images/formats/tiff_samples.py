"""Turn the stored samples of a TIFF page into grey levels and colours.

This is the one place that knows sample formats, bits, colour spaces, planes, opacity and palettes.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from anoscan.core.channels import PLAIN_CHANNELS
from anoscan.core.errors import InputError
from anoscan.images.formats import ccitt
from anoscan.images.formats.picture import DAMAGED, Opened, of_samples

Raw = NDArray[Any]

WHITE_IS_ZERO, BLACK_IS_ZERO, RGB, PALETTE, CMYK, YCBCR, LAB = 0, 1, 2, 3, 5, 6, 8
_COLOURS = {WHITE_IS_ZERO: 1, BLACK_IS_ZERO: 1, RGB: 3, PALETTE: 1, CMYK: 4, YCBCR: 3, LAB: 3}
_EIGHT_BITS = {CMYK: "CMYK", YCBCR: "YCbCr", LAB: "LAB"}  # colour spaces that Pillow converts
_UNSIGNED, _SIGNED, _FLOAT = 1, 2, 3
_PHOTOMETRIC, _COLOUR_MAP, _INKS = 262, 320, 332
_EXTRA, _COEFFICIENTS, _REFERENCE = 338, 529, 532
_ASSOCIATED, _UNASSOCIATED = _OPACITIES = 1, 2  # colours were multiplied by it, or were not
_CCITT = (2, 3, 4)
_JP2_YCBCR = 33003  # the one codec of images that leaves YCbCr to its reader
_COPIED = (8, 16, 32, 64)  # bits of samples that are numbers in memory too
# Luma weights, and black, white, zero and full of each of Y, Cb and Cr, where no tag says others.
_BT601, _FULL_RANGE = (0.299, 0.587, 0.114), (0.0, 255.0, 128.0, 255.0, 128.0, 255.0)


@dataclass(frozen=True)
class Layout:
    """What the numbers of a page mean.

    Parameters
    ----------
    photometric : int
    colours : int
        Samples of a pixel that are colours, or channels; the others are extra.
    opacity : int or None
        Index of the sample that is the opacity.
    associated : bool
        Whether the colours are already multiplied by the opacity.
    form, bits : int
        Sample format (1 unsigned, 2 signed, 3 float), and bits of a sample.
    many : bool
        Whether all samples are channels, and neither grey nor colours.
    """

    photometric: int
    colours: int
    opacity: int | None
    associated: bool
    form: int
    bits: int
    many: bool = False

    @classmethod
    def of(cls, page: Any, channels: int) -> Layout:
        """Find the layout of a page of tifffile; see `formats.read` for `channels`.

        Raises
        ------
        InputError
            When the page uses a feature that is not read. The message names it.
        """
        bits = _checked_bits(page)
        count = page.samplesperpixel
        default = RGB if count in (3, 4) else WHITE_IS_ZERO
        photometric = int(page.tags.valueof(_PHOTOMETRIC, default))
        if photometric not in _COLOURS:
            raise _not_read(f"colours as {_named(page.photometric)}")
        colours = _COLOURS[photometric]
        form = _UNSIGNED if bits == 1 else int(page.sampleformat)
        if _are_channels(page, photometric, channels):
            return cls(BLACK_IS_ZERO, count, None, False, form, bits, many=True)
        if count < colours or (colours == 1 and count > 2):
            raise InputError(
                f"is a TIFF of {count} samples a pixel "
                f"({_named(page.photometric)}): save it as grey or RGB"
            )
        _check_space(page, photometric, bits)
        extra = tuple(int(kind) for kind in page.extrasamples)[: count - colours]
        if photometric == RGB and count == 4 and page.tags.get(_EXTRA) is None:
            extra = (_UNASSOCIATED,)  # many writers leave the tag out, and mean opacity
        index = next((i for i, kind in enumerate(extra) if kind in _OPACITIES), None)
        opacity = None if index is None else colours + index
        associated = index is not None and extra[index] == _ASSOCIATED
        return cls(photometric, colours, opacity, associated, form, bits)

    @property
    def full(self) -> tuple[float, float]:
        """Lowest and highest value of a sample; of floats, those that stand for black and white."""
        if self.form == _FLOAT:
            return 0.0, 1.0
        low = -(2.0 ** (self.bits - 1)) if self.form == _SIGNED else 0.0
        return low, low + 2.0**self.bits - 1


def _are_channels(page: Any, photometric: int, channels: int) -> bool:
    """Whether the samples of a page are as many channels as are asked for.

    Of pages as stored, grey and colours with an opacity are none, nor are colours with one sample
    more.
    """
    count = page.samplesperpixel
    if channels in PLAIN_CHANNELS or photometric not in (WHITE_IS_ZERO, BLACK_IS_ZERO, RGB):
        return False
    if count == channels or (photometric != RGB and count > 3):
        return True
    kinds = tuple(int(kind) for kind in page.extrasamples)[: count - _COLOURS[photometric]]
    plain = count in PLAIN_CHANNELS or (photometric == RGB and count == 4)
    return not plain and not (kinds and kinds[0] in _OPACITIES)


def _checked_bits(page: Any) -> int:
    """Bits of a sample, where they and the sample format are known."""
    form, bits = page.sampleformat, page.bitspersample
    if isinstance(bits, tuple) and page.dtype is not None:
        return 8 * int(page.dtype.itemsize)  # tifffile scales colours of different depths, as 5-6-5
    whole = form in (_UNSIGNED, _SIGNED) and isinstance(bits, int) and 1 <= bits <= 64
    if not (whole or (page.dtype is not None and page.dtype.kind in "fc")):
        raise _not_read(f"samples of {_named(bits)} bits in format {_named(form)}")
    return int(bits)


def _check_space(page: Any, photometric: int, bits: int) -> None:
    """Refuse those colour spaces that are only read at some depths."""
    most = {CMYK: 16, YCBCR: 8, LAB: 8}.get(photometric)
    if most is not None and (page.sampleformat != _UNSIGNED or bits > most):
        raise _not_read(f"{_EIGHT_BITS[photometric]} of {bits} bits")
    if photometric == CMYK and page.tags.valueof(_INKS, 1) != 1:
        raise _not_read("inks that are not CMYK")


def _named(value: Any) -> str:
    if not isinstance(value, int):
        raise InputError(DAMAGED)
    return str(getattr(value, "name", value))


def _not_read(feature: str) -> InputError:
    return InputError(f"is a TIFF with {feature}, which is not read: save it as grey or RGB")


# --- stored samples -----------------------------------------------------------------------------


def stored(page: Any, layout: Layout) -> Raw:
    """Decode the samples (height, width, n) of a page as they are stored."""
    _check_codec(page)
    if page.is_subsampled and not _is_image_codec(page):
        return _subsampled(page)
    if _is_packed(page, layout):
        return _assembled(page, _packed(page, layout), page.samplesperpixel)
    found: Raw = page.asarray(maxworkers=1, squeeze=False)  # (planes, 1, height, width, n)
    return np.moveaxis(found[:, 0], 0, -2).reshape(page.imagelength, page.imagewidth, -1)


def _check_codec(page: Any) -> None:
    from tifffile import TIFF

    if page.compression in _CCITT:
        return
    try:
        _ = TIFF.DECOMPRESSORS[page.compression]
    except KeyError:
        raise _not_read(f"{_named(page.compression)} compression") from None
    if page.predictor == 1 or _is_image_codec(page):
        return
    known = page.bitspersample in _COPIED
    try:
        _ = TIFF.UNPREDICTORS[page.predictor]
    except KeyError:
        known = False
    if not known or page.is_subsampled:
        raise _not_read(f"predictor {_named(page.predictor)} of {page.bitspersample} bits")


def _is_image_codec(page: Any) -> bool:
    """Whether strips and tiles are images, which say themselves what their numbers are."""
    from tifffile import TIFF

    return page.compression in TIFF.IMAGE_COMPRESSIONS or page.compression in (6, 7, 33007, 34892)


def _is_packed(page: Any, layout: Layout) -> bool:
    whole = layout.form in (_UNSIGNED, _SIGNED) and not isinstance(page.bitspersample, tuple)
    if page.compression in _CCITT:
        return True
    return whole and layout.bits not in _COPIED and not _is_image_codec(page)


Decode = Callable[[bytes, int, int], Raw]


def _assembled(page: Any, decode: Decode, samples: int) -> Raw:
    """Put strips or tiles together that `decode` makes of (bytes, rows, columns)."""
    import imagecodecs
    from tifffile import TIFF

    height, width = page.imagelength, page.imagewidth
    rows, columns = page.rowsperstrip, width
    if page.is_tiled:
        rows, columns = page.tilelength, page.tilewidth
    planes = samples if page.planarconfig == 2 else 1
    places = [
        (plane, top, left)
        for plane in range(planes)
        for top in range(0, height, rows)
        for left in range(0, width, columns)
    ]
    found: Raw | None = None
    file = page.parent.filehandle
    for place, offset, length in zip(places, page.dataoffsets, page.databytecounts, strict=False):
        plane, top, left = place
        file.seek(offset)
        data = file.read(length)
        if page.fillorder == 2:
            data = imagecodecs.bitorder_decode(data)
        if page.compression not in (1, *_CCITT):
            most = rows * columns * samples * 9 + rows
            data = TIFF.DECOMPRESSORS[page.compression](data, out=most)
        part = decode(data, rows if page.is_tiled else min(rows, height - top), columns)
        if found is None:
            found = np.zeros((height, width, samples), part.dtype)
        cut = part[: height - top, : width - left]
        where = found[top : top + rows, left : left + columns]
        where[..., plane : plane + part.shape[2]] = cut
    if found is None:
        raise InputError(DAMAGED)
    return found


def _packed(page: Any, layout: Layout) -> Decode:
    """Return a function that unpacks samples of any number of bits; rows begin with a byte."""
    samples = 1 if page.planarconfig == 2 else page.samplesperpixel
    bits, signed = layout.bits, layout.form == _SIGNED
    order = page.parent.byteorder

    def unpack(data: bytes, rows: int, columns: int) -> Raw:
        if page.compression in _CCITT:
            options = page.tags.valueof(292, 0) if page.compression == 3 else 0
            return ccitt.decoded(data, rows, columns, page.compression, options)[..., None]
        length = -(-columns * samples * bits // 8)
        if len(data) < rows * length:
            raise InputError("truncated image")
        lines = np.frombuffer(data, np.uint8, rows * length).reshape(rows, length)
        return _whole(lines, columns * samples, bits, signed, order).reshape(rows, columns, samples)

    return unpack


def _whole(lines: NDArray[np.uint8], count: int, bits: int, signed: bool, order: str) -> Raw:
    """Unpack `count` whole numbers of each line; the highest bit comes first.

    Numbers of whole bytes, such as 24 bits, are in the byte order of the file.
    """
    kind = np.dtype(f"u{next(size for size in (1, 2, 4, 8) if 8 * size >= bits)}")
    if bits % 8 == 0:
        octets = lines[:, : count * bits // 8].reshape(len(lines), count, bits // 8)
        octets = octets[..., ::-1] if order == "<" else octets
        values = np.zeros((len(lines), count), kind)
        for place in range(bits // 8):
            values = (values << kind.type(8)) | octets[..., place]
    elif bits == 1:
        values = np.unpackbits(lines, axis=1, count=count)
    else:
        ones = np.unpackbits(lines, axis=1, count=count * bits).reshape(len(lines), count, bits)
        values = np.zeros((len(lines), count), kind)
        for place in range(bits):
            values = (values << kind.type(1)) | ones[..., place]
    if signed:
        spare = 8 * kind.itemsize - bits
        return np.asarray((values << kind.type(spare)).view(f"i{kind.itemsize}") >> spare)
    return values


def _subsampled(page: Any) -> Raw:
    """Unpack YCbCr of which several pixels share one Cb and Cr, not interpolated."""
    across, down = page.subsampling
    if page.planarconfig == 2 or page.bitspersample != 8:
        raise _not_read("subsampled YCbCr in planes or of more than 8 bits")

    def unpack(data: bytes, rows: int, columns: int) -> Raw:
        high, wide, size = -(-rows // down), -(-columns // across), across * down + 2
        if len(data) < high * wide * size:
            raise InputError("truncated image")
        blocks = np.frombuffer(data, np.uint8, high * wide * size).reshape(high, wide, size)
        luma = blocks[..., :-2].reshape(high, wide, down, across).swapaxes(1, 2)
        chroma = blocks[..., -2:].repeat(down, 0).repeat(across, 1)
        whole = np.dstack([luma.reshape(high * down, wide * across), chroma])
        return whole[:rows, :columns]

    return _assembled(page, unpack, 3)


# --- what they stand for ------------------------------------------------------------------------


def meaning(samples: Raw, page: Any, layout: Layout, *, deep: bool) -> Opened:
    """Make an image of stored samples (height, width, n), laid over black where not opaque."""
    height, width = samples.shape[:2]
    if layout.photometric == PALETTE:
        return _of_palette(samples, page, layout, deep)
    if layout.bits == 1 and samples.shape[2] == 1:
        bilevel = samples[..., 0] == (layout.photometric != WHITE_IS_ZERO)
        return Opened(Image.fromarray(bilevel), width, height)
    if layout.bits < 8 and layout.form == _UNSIGNED:
        most = 2**layout.bits - 1
        levels = np.rint(np.arange(most + 1) * (255 / most)).astype(np.uint8)
        samples, layout = levels[samples.astype(np.uint8)], dataclasses.replace(layout, bits=8)
    if layout.photometric in _EIGHT_BITS and not _is_rgb_already(page, layout):
        return Opened(_converted(samples, page, layout), width, height)
    if layout.many:
        return of_samples(samples, stored=samples.dtype, full=layout.full, many=True)
    colours, opacity = samples[..., : layout.colours], None
    if layout.opacity is not None:
        opacity = samples[..., layout.opacity, None]
    low, high = layout.full
    if layout.photometric == WHITE_IS_ZERO:
        colours = _inverted(colours, opacity if layout.associated else None, layout)
    if opacity is not None and not layout.associated:
        if samples.dtype == np.uint8:
            return of_samples(np.concatenate([colours, opacity], 2))
        share = (opacity.astype(np.float64) - low) / (high - low)
        colours = low + (colours - low) * share if low else colours * share
    if not deep and layout.colours == 3 and samples.dtype == np.uint16:
        return of_samples(_reduced(colours, layout.bits, chunky=page.planarconfig != 2))
    return of_samples(colours, stored=samples.dtype, full=layout.full)


def _inverted(colours: Raw, associated: Raw | None, layout: Layout) -> Raw:
    """Invert colours; those that are multiplied by an opacity turn into what it leaves of them."""
    if associated is not None:
        low, high = layout.full
        left = associated.astype(np.float64) - colours + low
        return np.asarray(left.clip(low, high), colours.dtype)
    if colours.dtype.kind == "f":
        return np.asarray(1 - colours, colours.dtype)
    if colours.dtype.kind == "i":
        return ~colours  # the lowest number becomes the highest
    return np.asarray(colours.dtype.type(2**layout.bits - 1) - colours)


def _reduced(colours: Raw, bits: int, *, chunky: bool) -> NDArray[np.uint8]:
    """Reduce colours of 9 to 16 bits to 8."""
    if chunky and bits == 16 and colours.dtype == np.uint16:
        # Pillow rounds down, and models have learned from that.
        return np.asarray(colours >> 8, np.uint8)
    return np.asarray(np.rint(colours * (255 / (2**bits - 1))), np.uint8)


def _of_palette(samples: Raw, page: Any, layout: Layout, deep: bool) -> Opened:
    table = np.asarray(page.tags.valueof(_COLOUR_MAP, ())).reshape(3, -1)
    if table.shape[1] < 2**layout.bits or layout.form != _UNSIGNED or layout.bits > 16:
        raise InputError(DAMAGED)
    table = table[:, : 2**layout.bits].T
    short = (table >> 8).astype(np.uint8)
    if layout.bits > 8 or layout.opacity is not None:
        wide = layout.bits > 8 and deep and bool((table & 0xFF).any())
        colours = (table.astype(np.uint16) if wide else short)[samples[..., 0]]
        if layout.opacity is not None and not layout.associated:
            most = np.iinfo(colours.dtype).max / (2**layout.bits - 1)
            opacity = np.rint(samples[..., layout.opacity, None] * most).astype(colours.dtype)
            colours = np.concatenate([colours, opacity], 2)
        return of_samples(colours)
    picture = Image.fromarray(np.ascontiguousarray(samples[..., 0], np.uint8))
    picture.putpalette(short.tobytes())
    return Opened(picture, picture.width, picture.height)


def _is_rgb_already(page: Any, layout: Layout) -> bool:
    return layout.photometric == YCBCR and _is_image_codec(page) and page.compression != _JP2_YCBCR


def _converted(samples: Raw, page: Any, layout: Layout) -> Image.Image:
    """Make a picture of a colour space that Pillow converts, reduced to 8 bits."""
    colours = np.ascontiguousarray(samples[..., : layout.colours])
    if layout.bits > 8:
        colours = (colours >> (layout.bits - 8)).astype(np.uint8)
    size = colours.shape[1::-1]
    if layout.photometric == YCBCR:
        weights = page.tags.valueof(_COEFFICIENTS)
        reference = page.tags.valueof(_REFERENCE)
        weights = _BT601 if weights is None else _fractions(weights)
        reference = _FULL_RANGE if reference is None else _fractions(reference)
        if not np.allclose(weights, _BT601, atol=1e-3) or not np.allclose(reference, _FULL_RANGE):
            return Image.fromarray(_rgb(colours, weights, reference))
    mode = _EIGHT_BITS[layout.photometric]
    return Image.frombytes(mode, size, colours.tobytes(), "raw", mode)


def _fractions(values: Any) -> tuple[float, ...]:
    """Numbers of a tag of fractions: numerators and denominators in turn."""
    flat = np.asarray(values, np.float64).ravel()
    return tuple((flat[::2] / flat[1::2]).tolist())


def _rgb(colours: Raw, weights: tuple[float, ...], reference: tuple[float, ...]) -> Raw:
    """Convert YCbCr by the weights and the black and white of its tags (TIFF 6.0, section 21)."""
    red, green, blue = weights
    black, white = np.array(reference[::2]), np.array(reference[1::2])
    y, cb, cr = np.moveaxis((colours - black) * np.array([255, 127, 127]) / (white - black), 2, 0)
    r, b = y + cr * (2 - 2 * red), y + cb * (2 - 2 * blue)
    rgb = np.stack([r, (y - blue * b - red * r) / green, b], 2)
    return np.asarray(np.rint(rgb).clip(0, 255), np.uint8)
