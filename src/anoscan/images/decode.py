"""Decode an image file into what the networks see, by the rule of a model."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from anoscan.core.arrays import Floats
from anoscan.core.channels import MOST_CHANNELS
from anoscan.core.config import FITS, LARGEST_PATCH, LARGEST_SIZE, SMALLEST_SIZE
from anoscan.core.errors import InputError
from anoscan.core.results import Skipped
from anoscan.images import pool, resampling
from anoscan.images.canvas import Canvas
from anoscan.images.files import ImageFile
from anoscan.images.fit import Fit
from anoscan.images.formats.picture import DAMAGE, Opened, memory
from anoscan.images.mismatch import Look, kind
from anoscan.images.roi import Cover, Roi

# Transposition that makes a stored image upright, by its EXIF orientation.
UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
# Orientation whose transposition takes an upright image back to the stored one.
TURNED_BACK = {turn: {6: 8, 8: 6}.get(turn, turn) for turn in range(1, 9)}
_GREY = np.array([0.299, 0.587, 0.114])  # weights of red, green and blue: ITU-R 601, as in Pillow

_RULE = {"size", "channels", "window"}
_OPTIONAL = {"patch", "roi", "fit", "shown"}
_STRIP = 2**22  # pixels that are laid over black at a time
_UNREDUCED = 2**31  # side in pixels; no JPEG is larger, so none is reduced


@dataclass(frozen=True, kw_only=True)
class ImageRule:
    """How an image becomes the array that the networks see.

    Parameters
    ----------
    size : int
        Side in pixels of the square that the networks see.
    channels : int
        1 for grey, 3 for RGB; another number, from 2 to 16, for images of so many channels.
    window : (low, high) or None
        Values of deep samples that become -1 and 1. Values beyond continue linearly to [-3, 3], so
        that an anomaly brighter than any normal image stays visible. A model that learned from
        8-bit images only has None. Then `Opened.full` takes its place, for example 0 and 65535 for
        integers. 8-bit samples always map 0..255 to [-1, 1].
    patch : int, optional
        Side in pixels of the squares of an image that the networks see. They are reduced to `size`
        where that is less. Without it, a whole image becomes the square of `size`.
    roi : Roi, optional
        Region of interest. Everything outside it is mid-grey (0) for the networks.
    fit : str
        How a whole image becomes square: a key of `core.config.FITS`. Padding has the median of
        the image, channel by channel.
    shown : tuple of 1 or 3 int, optional
        Channels, from 0, that pictures show, as grey or as RGB. By default they are the first
        three; of two channels, the second is green and blue.
    """

    size: int
    channels: int
    window: tuple[float, float] | None
    patch: int | None = None
    roi: Roi | None = None
    fit: str = "stretch"
    shown: tuple[int, ...] | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return the rule as JSON values, from which `from_dict` restores it."""
        window = None if self.window is None else list(self.window)
        whole: dict[str, Any] = {"size": self.size, "channels": self.channels, "window": window}
        if self.patch is not None:
            whole |= {"patch": self.patch}
        if self.fit != "stretch":
            whole |= {"fit": self.fit}
        if self.shown is not None:
            whole |= {"shown": list(self.shown)}
        return whole if self.roi is None else whole | {"roi": self.roi.to_dict()}

    @classmethod
    def from_dict(cls, values: Any) -> ImageRule:
        """Return the rule of JSON values, which are checked here.

        Raises
        ------
        ValueError
            When `to_dict` cannot have written the values.
        """
        if not isinstance(values, dict) or set(values) - _OPTIONAL != _RULE:
            raise ValueError(
                "an image rule has size, channels, window, and maybe patch, roi, fit and shown"
            )
        size, channels, window = values["size"], values["channels"], values["window"]
        if type(size) is not int or not SMALLEST_SIZE <= size <= LARGEST_SIZE:
            raise ValueError(f"size must be from {SMALLEST_SIZE} to {LARGEST_SIZE}")
        if type(channels) is not int or not 1 <= channels <= MOST_CHANNELS:
            raise ValueError(f"channels must be from 1 to {MOST_CHANNELS}")
        patch = values.get("patch")
        if patch is not None and (type(patch) is not int or not size <= patch <= LARGEST_PATCH):
            raise ValueError(f"patch must be from {size} to {LARGEST_PATCH}")
        window, roi = _checked_window(window), values.get("roi")
        roi = None if roi is None else Roi.from_dict(roi)
        fit = values.get("fit", "stretch")
        if not isinstance(fit, str) or fit not in FITS or (patch is not None and fit != "stretch"):
            raise ValueError(f"fit must be one of {', '.join(FITS)}, and stretch with patches")
        shown = _checked_shown(values.get("shown"), channels)
        return cls(
            size=size,
            channels=channels,
            window=window,
            patch=patch,
            roi=roi,
            fit=fit,
            shown=shown,
        )

    def picture(self, x: Floats) -> Floats:
        """Return what pictures show of images (..., c, h, w): (..., 1 or 3, h, w)."""
        if self.shown is not None:
            return x[..., list(self.shown), :, :]
        if self.channels == 2:
            return x[..., [0, 1, 1], :, :]
        return x if self.channels < 4 else x[..., :3, :, :]

    def fit_of(self, height: int, width: int) -> Fit | None:
        """Return how an upright image lies on the square, or None where it is all of the square.

        Raises
        ------
        InputError
            When the image is too long to be cropped. The message is the bare reason.
        """
        return None if self.patch is not None else Fit.of(self.fit, (height, width), self.size)


def _checked_shown(shown: Any, channels: int) -> tuple[int, ...] | None:
    if shown is None:
        return None
    if not isinstance(shown, list | tuple) or len(shown) not in (1, 3):
        raise ValueError("shown must be null or one or three channels")
    if not all(type(one) is int and 0 <= one < channels for one in shown):
        raise ValueError("shown must name channels of the images")
    return tuple(shown)


def _checked_window(window: Any) -> tuple[float, float] | None:
    if window is None:
        return None
    if not isinstance(window, list | tuple) or len(window) != 2:
        raise ValueError("window must be null or two numbers")
    if not all(type(end) in (int, float) for end in window):
        raise ValueError("window must be null or two numbers")
    try:
        low, high = float(window[0]), float(window[1])
    except OverflowError:
        raise ValueError("window must be finite") from None
    if not (math.isfinite(low) and math.isfinite(high - low) and low < high):
        raise ValueError("window must be finite and rising")
    return low, high


@dataclass(frozen=True)
class Decoded:
    """An image that was decoded by a rule.

    Parameters
    ----------
    image : ImageFile
    canvas : Canvas
        The upright image in stored samples. It is size x size (see `Canvas.fit`), or all of a
        large image whose patches the networks see.
    width, height, orientation : int
        Size in pixels of the image as stored, before its EXIF orientation, 1 to 8, is applied.
    look : Look
    digest : bytes
        SHA-256 of the file's bytes; for a page, of its samples.
    """

    image: ImageFile
    canvas: Canvas
    width: int
    height: int
    orientation: int
    look: Look
    digest: bytes

    def with_cover(self, cover: Cover | None) -> Decoded:
        """The same image with another cover."""
        return dataclasses.replace(self, canvas=dataclasses.replace(self.canvas, cover=cover))

    def __getstate__(self) -> dict[str, Any]:
        # The floats are four times as large as the samples, and soon made again.
        return {name: value for name, value in vars(self).items() if name != "pixels"}

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns of the upright image at its own resolution."""
        return (self.width, self.height) if self.orientation >= 5 else (self.height, self.width)

    @cached_property
    def pixels(self) -> Floats:
        """The whole canvas, (channels, height, width) float32, in [-1, 1] or, if deep, [-3, 3]."""
        return self.canvas.whole()


# --- decoding -----------------------------------------------------------------------------------


def decode(image: ImageFile, rule: ImageRule, cover: Cover | None = None) -> Decoded:
    """Read one image as `rule` says; `cover` is by default `rule.roi`, filled with mid-grey.

    The image is made upright, and fitted to the square with antialiasing. It is not resampled if
    it has the size already, or if patches are seen at their own resolution. Transparent pixels
    become black. Only the first frame of an animation is read. Grey keeps all its levels; colours
    keep more than 8 bits under a rule with a window.

    Raises
    ------
    InputError
        When the image cannot be decoded, or is smaller than a patch. The message is the bare
        reason, without the path.
    """
    opened = image.read(
        draft_side=2 * rule.size if rule.patch is None else _UNREDUCED,
        deep=rule.window is not None,
        channels=rule.channels,
    )
    try:
        with memory():
            if cover is None and rule.roi is not None:
                cover = Cover.grey(rule.roi, rule.channels)
            canvas = _as_ruled(opened, rule, cover)
    except DAMAGE:
        raise InputError("damaged image") from None
    width, height, orientation = opened.width, opened.height, opened.orientation
    picture = opened.picture
    depth = kind(picture) if isinstance(picture, Image.Image) else opened.depth
    size = (height, width) if orientation >= 5 else (width, height)
    look = Look.of(depth, _without_padding(canvas), size)
    decoded = Decoded(image, canvas, width, height, orientation, look, opened.digest)
    if rule.patch is None:
        _ = decoded.pixels  # computed here, because several threads decode
    elif min(canvas.height, canvas.width) < rule.size:
        raise InputError(
            f"is {opened.width}x{opened.height} pixels: smaller than the model's patches of "
            f"{rule.patch}x{rule.patch}"
        )
    return decoded


def decode_all(
    files: Iterable[ImageFile], rule: ImageRule, *, workers: int, cover: Cover | None = None
) -> Iterator[Decoded | Skipped]:
    """Decode `files` with so many `workers`, and yield the results in input order; see `decode`.

    `Skipped` gives the reason why a file could not be decoded. Only some files are decoded ahead of
    the consumer, so `files` may be endless. For a rule with patches it is two, because large images
    could fill the memory.
    """
    large = rule.patch is not None
    read = partial(_bare, rule=rule, cover=cover)
    if cover is None and rule.roi is not None:
        cover = Cover.grey(rule.roi, rule.channels)
    for image, found in pool.read_all(
        read, files, workers, inside=not large, ahead=2 if large else None
    ):
        if isinstance(found, pool.Failed):
            yield Skipped(path=image.path, reason=found.reason)
        else:
            found = found if found.image == image else dataclasses.replace(found, image=image)
            yield found if cover is None else found.with_cover(cover)


def decode_one(image: ImageFile, rule: ImageRule) -> Decoded:
    """Decode one image as safely as `decode_all` does; see `decode`."""
    return pool.read_one(partial(decode, rule=rule), image)


def _bare(image: ImageFile, rule: ImageRule, cover: Cover | None) -> Decoded:
    """Decode an image without the cover, which the caller has."""
    decoded = decode(image, rule, cover)
    return decoded if decoded.canvas.cover is None else decoded.with_cover(None)


def _as_ruled(opened: Opened, rule: ImageRule, cover: Cover | None) -> Canvas:
    bands, window = _bands(opened, rule)
    upright = (opened.height, opened.width)
    fit = rule.fit_of(*(upright[::-1] if opened.orientation >= 5 else upright))
    side = _side(opened, rule, fit)
    ready: list[NDArray[Any]] = []
    for place, band in enumerate(bands):
        if not isinstance(band, Image.Image):
            if cover is None and opened.pending == 1:
                ready.append(resampling.whole(band, side[::-1]))
                continue
            band = Image.fromarray(np.ascontiguousarray(band, np.float32))
        if cover is not None:
            # The cover is needed before resampling too, which would mix in pixels from outside.
            fill = cover.fill if band.mode == "RGB" else cover.fill[place : place + 1]
            if fit is not None and fill.shape[1:] != (1, 1):
                fill = fit.of_square(fill)
            band = _covered(band, Cover(cover.roi, fill), window, opened.pending)
        image = band.resize(side, Image.Resampling.BILINEAR)
        if opened.pending != 1:
            image = image.transpose(UPRIGHT[opened.pending])
        ready.append(np.asarray(image))
    samples = ready[0] if len(ready) == 1 else np.stack(ready, 2)
    if fit is not None:
        samples = fit.on_square(samples, _median(samples, cover))
    return Canvas(samples, rule.channels, window, cover, fit)


def _median(samples: NDArray[Any], cover: Cover | None) -> NDArray[Any]:
    """Median of the samples (h, w) or (h, w, c) that count, channel by channel, in their dtype."""
    height, width = samples.shape[:2]
    flat = samples.reshape(height * width, -1)
    if cover is not None:
        inside = cover.roi.part((0, 0), (height, width), (height, width)).ravel()
        flat = flat[inside] if inside.any() else flat
    middle = np.median(flat, axis=0).astype(samples.dtype)
    return np.asarray(middle if samples.ndim > 2 else middle[0])


def _without_padding(canvas: Canvas) -> Canvas:
    """Return what a canvas shows of its image: a padded one would look flatter than it is."""
    fit = canvas.fit
    if fit is None or fit.crops:
        return canvas
    return canvas.image()


def _covered(
    band: Image.Image, cover: Cover, window: tuple[float, float] | None, turned: int
) -> Image.Image:
    """Cover a band of an image as stored, which needs orientation `turned`; `cover` is upright."""
    size = band.size[::-1] if turned >= 5 else band.size
    low, high = window or (0.0, 255.0)
    levels = (cover.fill + 1) / 2 * (high - low) + low
    if window is None:
        levels = levels.round().clip(0, 255).astype(np.uint8)
    planes = [Image.fromarray(level).resize(size, Image.Resampling.BILINEAR) for level in levels]
    plain = planes[0] if len(planes) == 1 else Image.merge("RGB", planes)
    inside = Image.fromarray(cover.roi.part((0, 0), size[::-1], size[::-1]))
    if turned != 1:
        back = UPRIGHT[TURNED_BACK[turned]]
        plain, inside = plain.transpose(back), inside.transpose(back)
    return Image.composite(band, plain, inside)


def _bands(
    opened: Opened, rule: ImageRule
) -> tuple[Sequence[Image.Image | NDArray[Any]], tuple[float, float] | None]:
    """Return bands that can be resized one by one, and their window.

    Deep colours have three, and many channels one each.
    """
    picture = opened.picture
    if isinstance(picture, Image.Image):
        return [shallow_image(picture, rule.channels)], None
    if picture.dtype == np.uint8:
        return [Image.fromarray(band) for band in np.moveaxis(picture, 2, 0)], None
    if picture.ndim == 3 and rule.channels == 1:
        picture = (picture @ _GREY).astype(np.float32)
    bands = [picture] if picture.ndim == 2 else list(np.moveaxis(picture, 2, 0))
    return bands, rule.window or opened.full


def _side(opened: Opened, rule: ImageRule, fit: Fit | None) -> tuple[int, int]:
    """Width and height to which the picture is resized, before it is made upright."""
    if fit is not None:
        return (fit.height, fit.width) if opened.pending >= 5 else (fit.width, fit.height)
    if rule.patch is None:
        return rule.size, rule.size
    picture = opened.picture
    width, height = picture.size if isinstance(picture, Image.Image) else picture.shape[1::-1]
    return (
        max(1, round(width * rule.size / rule.patch)),
        max(1, round(height * rule.size / rule.patch)),
    )


def shallow_image(image: Image.Image, channels: int) -> Image.Image:
    """Convert an 8-bit image to grey (1 channel) or RGB (3); transparent pixels become black."""
    mode = "L" if channels == 1 else "RGB"
    if not image.has_transparency_data:
        return _opaque(image, mode)
    # In strips, for each of the copies would be four times as large as a grey picture.
    whole, rows = Image.new(mode, image.size), max(1, _STRIP // image.width)
    for top in range(0, image.height, rows):
        strip = image.crop((0, top, image.width, min(top + rows, image.height)))
        black = Image.new("RGBA", strip.size, (0, 0, 0, 255))
        black.alpha_composite(strip.convert("RGBA"))
        whole.paste(_opaque(black, mode), (0, top))
    return whole


def _opaque(image: Image.Image, mode: str) -> Image.Image:
    if image.mode not in ("1", "L"):  # LAB can become grey only by way of RGB
        image = image.convert("RGB")
    return image.convert(mode)


# --- back to the file ---------------------------------------------------------------------------


def stored_box(
    x0: float,
    y0: float,
    x1: float,
    y1: float,
    *,
    width: int,
    height: int,
    orientation: int,
) -> tuple[int, int, int, int]:
    """Convert a box in the upright image to pixels of the image as stored, as x, y, width, height.

    The opposite corners (x0, y0) and (x1, y1) are shares of the upright sides, 0 to 1. `width`,
    `height` and `orientation` are those of `Decoded`. The result is the smallest box of whole
    pixels that holds the given one. It lies inside the image and is at least 1x1.
    """
    (ax, ay), (bx, by) = _stored(x0, y0, orientation), _stored(x1, y1, orientation)
    x, box_width = _span(min(ax, bx) * width, max(ax, bx) * width, width)
    y, box_height = _span(min(ay, by) * height, max(ay, by) * height, height)
    return x, y, box_width, box_height


def _stored(u: float, v: float, orientation: int) -> tuple[float, float]:
    return {
        1: (u, v),
        2: (1 - u, v),
        3: (1 - u, 1 - v),
        4: (u, 1 - v),
        5: (v, u),
        6: (v, 1 - u),
        7: (1 - v, 1 - u),
        8: (1 - v, u),
    }[orientation]


def _span(low: float, high: float, length: int) -> tuple[int, int]:
    # Without the tolerance, the rounding of 1 - u would add a pixel.
    start = min(max(math.floor(low + 1e-6), 0), length - 1)
    end = min(max(math.ceil(high - 1e-6), start + 1), length)
    return start, end - start
