"""PNGs made for people: panels that show where an image is odd, and grids of samples."""

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
_FEW = 48  # pixels: pictures no larger are enlarged as sharp squares
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

# Nine anchors of matplotlib's inferno: lightness rises evenly, also for the colour-blind.
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

# What some file system refuses in a name, and what would be read back as an escape.
_ESCAPED = re.compile(r'[\x00-\x1f\x7f"*/:<>?\\|]|%(?=[0-9A-Fa-f]{2}|~)')
_LONGEST_NAME = 240  # bytes; file systems take 255 with the suffix


@dataclass(frozen=True)
class Views:
    """What is shown of an image; sizes may differ, all three show the same field."""

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
    """Query, reconstruction and map as pictures; `panel` describes the arguments.

    Parameters
    ----------
    side : int, optional
        Longest side that a picture may have, in pixels; longer ones are reduced.
    """
    if side is not None:
        # The worst of a block stands for it: a small defect must not be averaged away.
        anomaly_map = _blocks(anomaly_map, side).max((-3, -1))
        reconstruction = _blocks(reconstruction, 2 * side).mean((-3, -1))
    drawn = (_rgb(query), _rgb(reconstruction), coloured(anomaly_map, scale))
    if side is not None:
        for picture in drawn:
            picture.thumbnail((side, side), Image.Resampling.LANCZOS)
    return Views(*drawn)


def picture(image: NDArray[np.floating[Any]], side: int) -> Image.Image:
    """An image (channels, height, width) in [-1, 1] as a picture, no side over `side` pixels."""
    drawn = _rgb(image)
    drawn.thumbnail((side, side), Image.Resampling.LANCZOS)
    return drawn


def side_by_side(views: Views, height: int) -> Image.Image:
    """Three views in a row, each as tall as `height` in pixels and of the query's proportions."""
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
    """Query, reconstruction and residual side by side.

    Parameters
    ----------
    query, reconstruction : ndarray, (channels, height, width) float
        Values in [-1, 1]; what lies outside is clipped.
    anomaly_map : ndarray, (height, width) float
        Values from 0 up.
    scale : float
        Value with the brightest colour. Panels can be compared only if it is the same for all.
    shape : (int, int), optional
        Height and width of the image, of which only the proportions are used; as drawn without.
    like : iterable of ndarray, (channels, height, width) float
        More pictures, to stand on the right.
    zoom_to : int
        Side in pixels that each picture is enlarged to, as nearly as whole factors allow.
    """
    drawn = [_zoom(view, zoom_to) for view in views(query, reconstruction, anomaly_map, scale)]
    if shape is not None:
        drawn = [_proportioned(view, shape) for view in drawn]
    return row([*drawn, *(_zoom(_rgb(picture), zoom_to) for picture in like)])


def coloured(anomaly_map: NDArray[np.floating[Any]], scale: float) -> Image.Image:
    """Map (h, w) in colours, from black at 0 to the brightest at `scale`."""
    share = np.nan_to_num(np.clip(anomaly_map.astype(np.float64) / max(scale, 1e-30), 0, 1))
    return Image.fromarray(_COLOURS[(share * 255).round().astype(np.uint8)])


def overlay(
    query: NDArray[np.floating[Any]],
    anomaly_map: NDArray[np.floating[Any]],
    scale: float,
) -> tuple[Image.Image, Image.Image, Image.Image]:
    """Query, map in colours, and the query with the map over it, all of the query's size.

    Parameters
    ----------
    query : ndarray, (channels, height, width) float
        Values in [-1, 1]; what lies outside is clipped.
    anomaly_map : ndarray, (h, w) float
        Of the same field. What is at most half the scale leaves the query as it is.
    scale : float
        Value with the brightest colour.
    """
    image = _rgb(query)
    if max(anomaly_map.shape) > max(image.size):
        # The worst of a block stands for it: a small defect must not be averaged away.
        anomaly_map = _blocks(anomaly_map, max(image.size)).max((-3, -1))
    values = Image.fromarray(anomaly_map.astype(np.float32))
    values = values.resize(image.size, Image.Resampling.BILINEAR)
    numbers = np.asarray(values)
    colours = coloured(numbers, scale)
    opacity = np.clip(numbers / max(scale, 1e-30) * 2 - 1, 0, 0.75)
    alpha = Image.fromarray((np.nan_to_num(opacity) * 255).round().astype(np.uint8))
    return image, colours, Image.composite(colours, image, alpha)


def sheet(rows: Sequence[Image.Image]) -> Image.Image:
    """Pictures below each other, aligned on the left.

    Raises
    ------
    ValueError
        When there are none.
    """
    turned = [row.transpose(Image.Transpose.TRANSPOSE) for row in rows]
    return row(turned).transpose(Image.Transpose.TRANSPOSE)


def grid(images: NDArray[np.floating[Any]], columns: int, *, zoom_to: int = 64) -> Image.Image:
    """Images in rows of `columns`.

    Parameters
    ----------
    images : ndarray, (n, channels, height, width) float
        Values in [-1, 1]; what lies outside is clipped.
    columns : int
        At least 1.
    zoom_to : int
        Side in pixels that each image is enlarged to, as nearly as whole factors allow.

    Raises
    ------
    ValueError
        When there are none.
    """
    cells = [_zoom(_rgb(image), zoom_to) for image in images]
    return sheet([row(cells[at : at + columns]) for at in range(0, len(cells), columns)])


def numbered(images: NDArray[np.floating[Any]], columns: int, *, zoom_to: int = 64) -> Image.Image:
    """`grid` with numbers of rows and columns, from 1, beside it: a sheet that can be asked about.

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
    """Write `image` whole or not at all, with the folders above it.

    Raises
    ------
    InputError
        When it cannot be written there.
    """
    with replacing(path) as file:
        image.save(file, format="PNG")


def output_path(folder: Path, inside: str, suffix: str = _SUFFIX) -> Path:
    """Where a file made of an image goes: `folder` mirrors the input tree.

    Different values of `inside` give different paths, and all of them lie in `folder`: what is no
    plain name ('..', a drive letter, control characters) is written as ``%`` and its hexadecimal
    code, and a name too long for a file system is cut and completed with a hash.

    >>> output_path(Path("out"), "a/b.png").as_posix()
    'out/a/b.png.residual.png'
    """
    *parents, name = inside.split("/")
    for parent in parents:
        folder = folder / _parent_name(parent)
    return folder / (_plain(name) + suffix)


def _parent_name(part: str) -> str:
    plain = _plain(part)
    # The picture of "a.png" must not want the name of the folder "a.png.residual.png".
    if plain.lower().endswith((_SUFFIX, *MAP_SUFFIXES.values())):
        return f"{plain[:-1]}%{ord(plain[-1]):02X}"
    return plain


def _plain(part: str) -> str:
    if part in ("", ".", ".."):
        return "%2F" if not part else "%2E" * len(part)  # no other name contains a slash
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
    """Image (..., height, width) as blocks (..., rows, block, columns, block), at most `side`."""
    *rest, height, width = image.shape
    block = max(1, min(-(-max(height, width) // side), height, width))
    rows, columns = height // block, width // block
    cut = image[..., : rows * block, : columns * block]
    return cut.reshape(*rest, rows, block, columns, block)


def _zoom(image: Image.Image, side: int) -> Image.Image:
    factor = max(1, round(side / max(image.size)))
    return image.resize((image.width * factor, image.height * factor), Image.Resampling.NEAREST)


def _proportioned(image: Image.Image, shape: tuple[int, int]) -> Image.Image:
    """A square view of an image of `shape`, its shorter side reduced: nothing is cut."""
    height, width = (max(1, round(image.width * side / max(shape))) for side in shape)
    return image.resize((width, height), Image.Resampling.BOX)


def row(pictures: Sequence[Image.Image]) -> Image.Image:
    """Pictures beside each other, aligned at the top.

    Raises
    ------
    ValueError
        When there are none.
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
