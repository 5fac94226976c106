"""Pictures for people: panels that show where an image is anomalous, and grids of samples."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from anoscan.core.files import replacing

_GAP = 4  # pixels
_MARGIN = 20  # pixels, for the numbers of rows and columns
_FEW = 48  # pixels a side: pictures up to this size are enlarged without smoothing
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

# These are nine anchors of Matplotlib's colour map inferno. Its lightness rises evenly, also for
# the colour-blind.
_ANCHORS = (
    (0, 0, 4),
    (33, 12, 74),
    (87, 16, 110),
    (138, 34, 106),
    (188, 55, 84),
    (228, 90, 49),
    (249, 142, 9),
    (249, 203, 53),
    (252, 255, 164),
)
_INDEX = np.linspace(0, len(_ANCHORS) - 1, 256)
_BANDS = [np.interp(_INDEX, range(len(_ANCHORS)), band) for band in zip(*_ANCHORS, strict=True)]
_COLOURS = np.stack(_BANDS, axis=1).round().astype(np.uint8)

# These are characters that some file systems refuse in a name, and '%' where it would be read back
# as an escape.
_ESCAPED = re.compile(r'[\x00-\x1f\x7f"*/:<>?\\|]|%(?=[0-9A-Fa-f]{2}|~)')
_LONGEST_NAME = 240  # bytes; most file systems take at most 255, including the suffix


@dataclass(frozen=True)
class Views:
    """Three pictures of one image; sizes may differ, but all show the same field of view."""

    query: Image.Image
    reconstruction: Image.Image
    anomaly_map: Image.Image

    def __iter__(self) -> Iterator[Image.Image]:
        return iter((self.query, self.reconstruction, self.anomaly_map))


def views(
    query: NDArray[np.floating[Any]],
    reconstruction: NDArray[np.floating[Any]],
    anomaly_map: NDArray[np.floating[Any]],
    scale: float,
    *,
    side: int | None = None,
) -> Views:
    """Draw query, reconstruction and map as for `panel`, with no side over `side` pixels."""
    if side is not None:
        # Each block of the map is replaced by its maximum: a mean would hide a small defect.
        anomaly_map = _blocks(anomaly_map, side).max((-3, -1))
        reconstruction = _blocks(reconstruction, 2 * side).mean((-3, -1))
    drawn = (_rgb(query), _rgb(reconstruction), coloured(anomaly_map, scale))
    if side is not None:
        for picture in drawn:
            picture.thumbnail((side, side), Image.Resampling.LANCZOS)
    return Views(*drawn)


def picture(image: NDArray[np.floating[Any]], side: int) -> Image.Image:
    """Draw an image (channels, height, width) in [-1, 1], with no side over `side` pixels."""
    drawn = _rgb(image)
    drawn.thumbnail((side, side), Image.Resampling.LANCZOS)
    return drawn


def side_by_side(views: Views, height: int) -> Image.Image:
    """Draw the views in a row, each `height` pixels high and in the query's proportions."""
    size = (max(1, round(height * views.query.width / views.query.height)), height)
    small = max(views.query.size) <= _FEW
    how = Image.Resampling.NEAREST if small else Image.Resampling.BILINEAR
    return row([view.resize(size, how) for view in views])


def panel(
    query: NDArray[np.floating[Any]],
    reconstruction: NDArray[np.floating[Any]],
    anomaly_map: NDArray[np.floating[Any]],
    scale: float,
    *,
    shape: tuple[int, int] | None = None,
    like: Iterable[NDArray[np.floating[Any]]] = (),
    zoom_to: int = 192,
) -> Image.Image:
    """Draw query, reconstruction and residual side by side.

    Parameters
    ----------
    query, reconstruction : ndarray, (channels, height, width) float
        Images with values in [-1, 1]; values outside are clipped.
    anomaly_map : ndarray, (height, width) float
        Residual or anomaly map, with values from 0 up.
    scale : float
        Value that gets the brightest colour. Panels can be compared only if it is the same.
    shape : (int, int), optional
        Height and width of the image, whose ratio the pictures get; without it they keep their own.
    like : iterable of ndarray, (channels, height, width) float
        Further images with values in [-1, 1], drawn on the right.
    zoom_to : int
        Side in pixels that each picture is enlarged to, as nearly as whole factors allow.
    """
    drawn = [_zoom(view, zoom_to) for view in views(query, reconstruction, anomaly_map, scale)]
    if shape is not None:
        drawn = [_proportioned(view, shape) for view in drawn]
    return row([*drawn, *(_zoom(_rgb(picture), zoom_to) for picture in like)])


def coloured(anomaly_map: NDArray[np.floating[Any]], scale: float) -> Image.Image:
    """Draw a map (h, w) in colours, from black at 0 to the brightest colour at `scale`."""
    share = np.nan_to_num(np.clip(anomaly_map.astype(np.float64) / max(scale, 1e-30), 0, 1))
    return Image.fromarray(_COLOURS[(share * 255).round().astype(np.uint8)])


def overlay(
    query: NDArray[np.floating[Any]],
    anomaly_map: NDArray[np.floating[Any]],
    scale: float,
) -> tuple[Image.Image, Image.Image, Image.Image]:
    """Draw the query, the map in colours, and the query with the map over it.

    All three have the size of the query (channels, height, width), with values clipped to [-1, 1].
    The map (h, w) of the same field of view may have any size. The brightest colour stands for
    `scale`. Values up to half of `scale` leave the query unchanged.
    """
    image = _rgb(query)
    if max(anomaly_map.shape) > max(image.size):
        # Each block of the map is replaced by its maximum: a mean would hide a small defect.
        anomaly_map = _blocks(anomaly_map, max(image.size)).max((-3, -1))
    values = Image.fromarray(anomaly_map.astype(np.float32))
    values = values.resize(image.size, Image.Resampling.BILINEAR)
    numbers = np.asarray(values)
    colours = coloured(numbers, scale)
    opacity = np.clip(numbers / max(scale, 1e-30) * 2 - 1, 0, 0.75)
    alpha = Image.fromarray((np.nan_to_num(opacity) * 255).round().astype(np.uint8))
    return image, colours, Image.composite(colours, image, alpha)


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
    cells = [_zoom(_rgb(image), zoom_to) for image in images]
    return sheet([row(cells[at : at + columns]) for at in range(0, len(cells), columns)])


def numbered(images: NDArray[np.floating[Any]], columns: int, *, zoom_to: int = 64) -> Image.Image:
    """Draw a `grid` with its rows and columns numbered from 1, so that each image can be named.

    Raises
    ------
    ValueError
        When there are no images.
    """
    cells = grid(images, columns, zoom_to=zoom_to)
    side = _zoom(_rgb(images[0]), zoom_to).size
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
    with replacing(path) as file:
        image.save(file, format="PNG")


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


def _zoom(image: Image.Image, side: int) -> Image.Image:
    factor = max(1, round(side / max(image.size)))
    return image.resize((image.width * factor, image.height * factor), Image.Resampling.NEAREST)


def _proportioned(image: Image.Image, shape: tuple[int, int]) -> Image.Image:
    """Shrink one side of a square view so that it has the ratio of `shape`; nothing is cut."""
    height, width = (max(1, round(image.width * side / max(shape))) for side in shape)
    return image.resize((width, height), Image.Resampling.BOX)


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
