"""An upright image in its stored samples, and the parts of it that networks see."""

from __future__ import annotations

import dataclasses
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from anoscan.core.arrays import Floats
from anoscan.images.fit import Fit
from anoscan.images.roi import LARGEST, Cover, Roi

TRIES = 3  # places that are drawn for one crop: the next is tried where it is blank
BLANK = 2 / 127.5  # range of a crop that counts as blank: two of 255 levels


@dataclass(frozen=True)
class Canvas:
    """An upright image in stored samples, parts of which become what networks see.

    Parameters
    ----------
    samples : ndarray, (height, width) or (height, width, c), uint8, uint16 or float32
    channels : int
        Channels c that the networks see. Grey samples are repeated where this is 3.
    window : (low, high) or None
        Sample values that become -1 and 1. Values beyond them continue linearly to [-3, 3]. None is
        for 8 bits, where 0 becomes -1 and 255 becomes 1.
    cover : Cover, optional
        Region of interest, and the values that replace everything outside it.
    fit : Fit, optional
        Where the image lies on the canvas, which then is a square; without it, it is all of it.
    """

    samples: NDArray[np.uint8] | NDArray[np.uint16] | Floats
    channels: int
    window: tuple[float, float] | None
    cover: Cover | None = None
    fit: Fit | None = None

    @property
    def height(self) -> int:
        """Number of rows."""
        return int(self.samples.shape[0])

    @property
    def width(self) -> int:
        """Number of columns."""
        return int(self.samples.shape[1])

    def part(self, top: int, left: int, height: int, width: int) -> Floats:
        """Return a rectangle of the image as networks see it, (channels, height, width) float32.

        It must lie inside the image. Values are in [-1, 1], or [-3, 3] with a window.
        """
        cut = self.samples[top : top + height, left : left + width]
        values = np.asarray(cut, np.float64)
        if self.window is not None:
            low, high = self.window
            values = np.clip((values - low) / (high - low) * 2 - 1, -3, 3)
        else:
            values = values / 127.5 - 1
        values = values[None] if values.ndim == 2 else values.transpose(2, 0, 1)
        if self.cover is not None:
            values = self.cover.over(values, (top, left), (self.height, self.width), self.fit)
        shape = (self.channels, *values.shape[1:])
        return np.ascontiguousarray(np.broadcast_to(values, shape), np.float32)

    def of_image(self, found: NDArray[Any]) -> NDArray[Any]:
        """Return what was found of the canvas (..., h, w) as it lies over the whole image.

        Padding is left out, and what was cropped is 0.
        """
        return found if self.fit is None or not found.size else self.fit.of_square(found)

    def counted(self, found: NDArray[Any]) -> NDArray[Any]:
        """Return a map (h, w) of the canvas over the whole image, with 0 where nothing counts."""
        found = self.of_image(found)
        if self.cover is None or not found.size:
            return found
        return np.where(self.cover.roi.part((0, 0), found.shape, found.shape), found, 0)

    def inside(self, shape: tuple[int, int]) -> NDArray[np.bool_] | None:
        """Return which places of a map of the whole image, of this shape, count; None for all."""
        cropped = self.fit is not None and self.fit.crops
        seen = self.fit.seen(shape) if self.fit is not None and cropped else None
        if self.cover is None:
            return seen
        inside = self.cover.roi.part((0, 0), shape, shape)
        return inside if seen is None else inside & seen

    def image(self) -> Canvas:
        """Return the canvas of the whole image, without padding; what was cropped is covered."""
        if self.fit is None:
            return self
        samples = np.moveaxis(np.atleast_3d(self.samples), 2, 0)
        whole = np.moveaxis(self.fit.of_square(samples), 0, 2)
        own = whole[..., 0] if self.samples.ndim == 2 else whole
        cover = self.cover
        if cover is not None and cover.fill.shape[1:] != (1, 1):
            cover = Cover(cover.roi, self.fit.of_square(cover.fill))
        return Canvas(own, self.channels, self.window, cover).covered(self.fit)

    def covered(self, fit: Fit | None) -> Canvas:
        """Return this canvas of a whole image with a cover of all that is cropped by `fit`."""
        if fit is None or not fit.crops:
            return self
        seen = Roi.of(fit.seen((min(fit.height, LARGEST), min(fit.width, LARGEST))))
        with suppress(ValueError):  # the region of interest may be all cropped
            seen = seen.within(None if self.cover is None else self.cover.roi)
        cover = Cover.grey(seen, self.channels)
        if self.cover is not None:
            cover = Cover(seen, self.cover.fill)
        return dataclasses.replace(self, cover=cover)

    def counted_rows(self, top: int, rows: Floats) -> Floats:
        """Set rows (h, width) of a full-size map, from row `top` on, to 0 outside the region."""
        if self.cover is None:
            return rows
        inside = self.cover.roi.part((top, 0), rows.shape[:2], (self.height, self.width))
        return np.where(inside, rows, np.float32(0))

    def whole(self) -> Floats:
        """The whole image as networks see it, (channels, height, width) float32."""
        return self.part(0, 0, self.height, self.width)

    def reduced(self, side: int) -> Floats:
        """Return the image reduced to means of square blocks, (channels, h, w) float32.

        Its sides are at most `side`; an image that is no larger is returned whole. Rows are
        converted a few at a time, because a large image would take much memory as floats.
        """
        block = -(-max(self.height, self.width) // side)
        return self.whole() if block == 1 else self._means(block)

    def _means(self, block: int) -> Floats:
        rows, columns = max(1, self.height // block), max(1, self.width // block)
        high, wide = min(block, self.height), min(block, self.width)
        small = np.empty((self.channels, rows, columns), np.float32)
        for row in range(rows):
            band = self.part(row * block, 0, high, columns * wide)
            small[:, row] = band.reshape(self.channels, high, columns, wide).mean((1, 3))
        return small

    def centre(self, side: int) -> Floats:
        """Square in the middle of the image, (channels, side, side) float32."""
        return self.part((self.height - side) // 2, (self.width - side) // 2, side, side)

    def crops(self, side: int, draws: NDArray[np.floating[Any]]) -> Floats:
        """Return squares at random places, (n, channels, side, side) float32.

        `draws` (n, TRIES, 2) in [0, 1) are places of each square, tried in turn while it is blank:
        blank squares have little to teach. The last place is used in any case, because a network
        that never saw a blank square would find it anomalous.
        """
        room = np.array([self.height - side + 1, self.width - side + 1])
        found = np.empty((len(draws), self.channels, side, side), np.float32)
        for crop, tries in zip(found, np.floor(draws * room).astype(int).tolist(), strict=True):
            for top, left in tries:
                crop[:] = self.part(top, left, side, side)
                if np.ptp(crop) > BLANK:
                    break
        return found
