"""Pictures for people: panels that show where an image is anomalous, and grids of samples."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from anoscan.core.files import replacing

_GAP = 4  # pixels
_MARGIN = 20  # pixels, for the numbers of rows and columns
_FEW = 48  # pixels a side: pictures up to this size are enlarged without smoothing
_CLEAR, _RISE, _MOST_OPAQUE = 0.2, 2.0, 0.65  # shares of the colour scale, and opacity
_INK = (230, 230, 230)
_BACKGROUND = (40, 40, 40)
_SUFFIX = ".residual.png"
MAP_SUFFIXES = {
    "overlay": ".overlay.png",
    "side-by-side": ".side-by-side.png",
    "npy": ".map.npy",
    "tiff": ".map.tiff",
    "mask": ".mask.png",
}

# These are anchors of Matplotlib's colour map inferno without its palest end, which could not be
# seen on a bright image. Its lightness rises evenly, also for the colour-blind.
_ANCHORS = (
    (0, 0, 4),
    (33, 12, 74),
    (87, 16, 110),
    (138, 34, 106),
    (188, 55, 84),
    (228, 90, 49),
    (249, 142, 9),
    (249, 203, 53),
)
COLOUR_STOPS = tuple(f"rgb({r} {g} {b})" for r, g, b in _ANCHORS)  # evenly spaced, as in CSS
_INDEX = np.linspace(0, len(_ANCHORS) - 1, 256)
_BANDS = [np.interp(_INDEX, range(len(_ANCHORS)), band) for band in zip(*_ANCHORS, strict=True)]
_COLOURS = np.stack(_BANDS, axis=1).round().astype(np.uint8)
_OPACITY = [
    round(255 * min(max((level / 255 - _CLEAR) * _RISE, 0), _MOST_OPAQUE)) for level in range(256)
]

# These are characters that some file systems refuse in a name, and '%' where it would be read back
# as an escape.
_ESCAPED = re.compile(r'[\x00-\x1f\x7f"*/:<>?\\|]|%(?=[0-9A-Fa-f]{2}|~)')
_LONGEST_NAME = 240  # bytes; most file systems take at most 255, including the suffix


@dataclass(frozen=True)
class Views:
    """Three pictures of one image; sizes may differ, but all show the same field of view."""

    query: Image.Image
    reconstruction: Image.Image  # or a placard where the model cannot reconstruct
    anomaly_map: Image.Image  # over the query

    def __iter__(self) -> Iterator[Image.Image]:
        return iter((self.query, self.reconstruction, self.anomaly_map))


def picture(image: NDArray[np.floating[Any]], side: int | None = None) -> Image.Image:
    """Draw an image (channels, height, width) in [-1, 1], with no side over `side` pixels.

    Values outside are clipped.
    """
    if side is None:
        return _rgb(image)
    drawn = _rgb(_blocks(image, 2 * side).mean((-3, -1)))
    drawn.thumbnail((side, side), Image.Resampling.LANCZOS)
    return drawn


def enlarged(image: Image.Image, side: int) -> Image.Image:
    """Enlarge a picture by the whole factor that brings its longer side nearest to `side`.

    Its pixels stay sharp, and a larger picture stays as it is.
    """
    factor = max(1, round(side / max(image.size)))
    return image.resize((image.width * factor, image.height * factor), Image.Resampling.NEAREST)


def side_by_side(views: Views, height: int) -> Image.Image:
    """Draw the views in a row, each `height` pixels high and in the query's proportions."""
    size = (max(1, round(height * views.query.width / views.query.height)), height)
    small = max(views.query.size) <= _FEW
    how = Image.Resampling.NEAREST if small else Image.Resampling.BILINEAR
    return row([view.resize(size, how) for view in views])


def coloured(anomaly_map: NDArray[np.floating[Any]], scale: float) -> Image.Image:
    """Draw a map (h, w) in colours, from black at 0 to the brightest colour at `scale`."""
    return _in_colours(Image.fromarray(_levels(anomaly_map, scale)))


def coloured_at(
    size: tuple[int, int],
    anomaly_map: NDArray[np.floating[Any]],
    scale: float,
    how: Image.Resampling = Image.Resampling.BILINEAR,
) -> Image.Image:
    """Draw a map (h, w) like `coloured`, but in a picture of another size (width, height)."""
    return _in_colours(_resized(anomaly_map, size, scale, how))


def overlay(
    image: Image.Image, anomaly_map: NDArray[np.floating[Any]], scale: float
) -> Image.Image:
    """Draw a picture in grey, so that all colour is that of the map (h, w) over it.

    Both have the same field of view. The brightest colour stands for `scale`. Values up to `_CLEAR`
    of it leave the picture as it is. From there on the colours cover more and more of it.
    """
    levels = _resized(anomaly_map, image.size, scale, Image.Resampling.BILINEAR)
    grey = image.convert("L").convert("RGB")
    return Image.composite(_in_colours(levels), grey, levels.point(_OPACITY))


def _in_colours(levels: Image.Image) -> Image.Image:
    """Draw levels (mode L, 0 to 255) in the colours of maps."""
    indexed = levels.copy()
    indexed.putpalette(_COLOURS.tobytes())
    return indexed.convert("RGB")


def sheet(rows: Sequence[Image.Image]) -> Image.Image:
    """Stack pictures below each other, aligned on the left.

    Raises
    ------
    ValueError
        When there are no pictures.
    """
    turned = [row.transpose(Image.Transpose.TRANSPOSE) for row in rows]
    return row(turned).transpose(Image.Transpose.TRANSPOSE)


def grid(images: NDArray[np.floating[Any]], columns: int, *, zoom_to: int = 64) -> Image.Image:
    """Draw images (n, channels, height, width), clipped to [-1, 1], in rows of `columns`.

    Each image is enlarged to a side of `zoom_to` pixels, as nearly as whole factors allow.

    Raises
    ------
    ValueError
        When there are no images.
    """
    cells = [enlarged(_rgb(image), zoom_to) for image in images]
    return sheet([row(cells[at : at + columns]) for at in range(0, len(cells), columns)])


def numbered(images: NDArray[np.floating[Any]], columns: int, *, zoom_to: int = 64) -> Image.Image:
    """Draw a `grid` with its rows and columns numbered from 1, so that each image can be named.

    Raises
    ------
    ValueError
        When there are no images.
    """
    cells = grid(images, columns, zoom_to=zoom_to)
    side = enlarged(_rgb(images[0]), zoom_to).size
    framed = Image.new("RGB", (cells.width + _MARGIN, cells.height + _MARGIN), _BACKGROUND)
    framed.paste(cells, (_MARGIN, _MARGIN))
    draw = ImageDraw.Draw(framed)
    for axis, end in enumerate(cells.size):
        for number, start in enumerate(range(0, end, side[axis] + _GAP), start=1):
            place = [_MARGIN / 2, _MARGIN / 2]
            place[axis] = _MARGIN + start + side[axis] / 2
            text = str(number)
            left, top, right, bottom = draw.textbbox((0, 0), text)
            corner = (place[0] - (left + right) / 2, place[1] - (top + bottom) / 2)
            draw.text(corner, text, fill=_INK)
    return framed


def save_png(image: Image.Image, path: Path) -> None:
    """Write `image` as PNG, completely or not at all, and create missing folders.

    Raises
    ------
    InputError
        When the file cannot be written.
    """
    # Pillow takes up to three times the time, for files a tenth smaller.
    data = imagecodecs.png_encode(np.asarray(image), level=1, filter=imagecodecs.PNG.FILTER.UP)
    with replacing(path) as file:
        file.write(data)


def output_path(folder: Path, inside: str, suffix: str = _SUFFIX) -> Path:
    """Return the path in `folder` of a file made of an image; `folder` mirrors the input tree.

    `inside` is the path of the image in the input tree, with slashes. Different values give
    different paths, and all of them lie in `folder`. Characters that are not safe in a name (of
    '..', a drive letter, control characters) are written as ``%`` and their hexadecimal code. A
    name too long for a file system is cut and completed with a hash.

    >>> output_path(Path("out"), "a/b.png").as_posix()
    'out/a/b.png.residual.png'
    """
    *parents, name = inside.split("/")
    for parent in parents:
        folder = folder / _parent_name(parent)
    return folder / (_plain(name) + suffix)


def _parent_name(part: str) -> str:
    plain = _plain(part)
    # A folder "a.png.residual.png" would take the path of the picture of "a.png".
    if plain.lower().endswith((_SUFFIX, *MAP_SUFFIXES.values())):
        return f"{plain[:-1]}%{ord(plain[-1]):02X}"
    return plain


def _plain(part: str) -> str:
    if part in ("", ".", ".."):
        return "%2F" if not part else "%2E" * len(part)  # unique: no name contains a slash
    plain = _ESCAPED.sub(lambda match: f"%{ord(match[0]):02X}", part)
    encoded = plain.encode("utf-8", "surrogatepass")
    if len(encoded) <= _LONGEST_NAME:
        return plain
    kept = encoded[:150].decode("utf-8", "ignore")
    return f"{kept}%~{hashlib.sha256(encoded).hexdigest()}"


def _rgb(image: NDArray[np.floating[Any]]) -> Image.Image:
    levels = np.nan_to_num((np.clip(image, -1, 1) + 1) * 127.5).round().astype(np.uint8)
    rgb = np.broadcast_to(levels, (3, *levels.shape[1:])).transpose(1, 2, 0)
    return Image.fromarray(np.ascontiguousarray(rgb))


def _blocks(image: NDArray[np.floating[Any]], side: int) -> NDArray[np.floating[Any]]:
    """Divide an image (..., height, width) into blocks, (..., rows, block, columns, block).

    There are at most `side` rows and columns of them where possible; incomplete blocks are cut off.
    """
    *rest, height, width = image.shape
    block = max(1, min(-(-max(height, width) // side), height, width))
    rows, columns = height // block, width // block
    cut = image[..., : rows * block, : columns * block]
    return cut.reshape(*rest, rows, block, columns, block)


def _levels(anomaly_map: NDArray[np.floating[Any]], scale: float) -> NDArray[np.uint8]:
    """Return the values of a map as levels from 0 to 255, the level of `scale`.

    What is no number becomes 0.
    """
    with np.errstate(over="ignore"):
        shares = np.clip(anomaly_map / max(scale, 1e-30), 0, 1)
    levels: NDArray[np.uint8] = (np.nan_to_num(shares) * 255).round().astype(np.uint8)
    return levels


def _resized(
    anomaly_map: NDArray[np.floating[Any]],
    size: tuple[int, int],
    scale: float,
    how: Image.Resampling,
) -> Image.Image:
    """Draw the `_levels` of a map (h, w) in a size (width, height); the narrowest spot stays."""
    for axis, side in enumerate(reversed(size)):
        length = anomaly_map.shape[axis]
        if length > side:
            # Places that share a pixel become their maximum: a mean would hide a small defect.
            starts = np.arange(side) * length // side
            anomaly_map = np.maximum.reduceat(anomaly_map, starts, axis=axis)
    return Image.fromarray(_levels(anomaly_map, scale)).resize(size, how)


def row(pictures: Sequence[Image.Image]) -> Image.Image:
    """Put pictures beside each other, aligned at the top.

    Raises
    ------
    ValueError
        When there are no pictures.
    """
    if not pictures:
        raise ValueError("no pictures")
    width = sum(picture.width for picture in pictures) + _GAP * (len(pictures) - 1)
    row = Image.new("RGB", (width, max(picture.height for picture in pictures)), _BACKGROUND)
    left = 0
    for picture in pictures:
        row.paste(picture, (left, 0))
        left += picture.width + _GAP
    return row
