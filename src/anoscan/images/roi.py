"""Regions of interest: masks for images of any size, and the values that replace the rest."""

from __future__ import annotations

import base64
import binascii
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from anoscan.core.arrays import Floats
from anoscan.images.fit import Fit

Bools = NDArray[np.bool_]

LARGEST = 512  # pixels a side of a kept mask; networks see no more


@dataclass(frozen=True)
class Roi:
    """A region of interest: a mask that is stretched over each image.

    Its sides are 1 to `LARGEST` pixels. `bits` are its rows, eight pixels a byte; 1 is inside.
    """

    height: int
    width: int
    bits: bytes

    @classmethod
    def of(cls, mask: Bools) -> Roi:
        """Make a region from a mask (height, width), which is True inside.

        A mask with a side above `LARGEST` is thinned out to it.

        Raises
        ------
        ValueError
            When nothing is inside, as far as the thinned mask shows.
        """
        height, width = mask.shape
        whole = cls(height, width, np.packbits(mask).tobytes())
        height, width = min(height, LARGEST), min(width, LARGEST)
        kept = whole.part((0, 0), (height, width), (height, width))
        if not kept.any():
            raise ValueError("nothing is inside")
        return cls(height, width, np.packbits(kept).tobytes())

    @cached_property
    def _mask(self) -> Bools:
        flat = np.unpackbits(np.frombuffer(self.bits, np.uint8), count=self.height * self.width)
        return flat.reshape(self.height, self.width).astype(np.bool_)

    def part(self, corner: tuple[int, int], size: tuple[int, int], whole: tuple[int, int]) -> Bools:
        """Return which pixels of a rectangle of an image are inside, as bools of shape `size`.

        `corner` (top left) and `size` of the rectangle, and `whole`, the size of the image, are
        (rows, columns).
        """
        rows, columns = (
            ((start + np.arange(length) + 0.5) * side / full).astype(np.intp)
            for start, length, side, full in zip(
                corner, size, (self.height, self.width), whole, strict=True
            )
        )
        return self._mask[np.ix_(rows, columns)]

    def within(self, other: Roi | None) -> Roi:
        """Return the region inside both this and the other one; None is all of the image.

        Raises
        ------
        ValueError
            When nothing is inside both.
        """
        if other is None:
            return self
        corner, whole = (0, 0), (LARGEST, LARGEST)
        return Roi.of(self.part(corner, whole, whole) & other.part(corner, whole, whole))

    def covers(self, other: Roi | None) -> bool:
        """Whether all of another region is inside; None is all of the image."""
        corner, whole = (0, 0), (LARGEST, LARGEST)
        inside = self.part(corner, whole, whole)
        if other is not None:
            inside |= ~other.part(corner, whole, whole)
        return bool(inside.all())

    def to_dict(self) -> dict[str, Any]:
        """Return the region as JSON values, from which `from_dict` restores it."""
        bits = base64.b64encode(self.bits).decode("ascii")
        return {"height": self.height, "width": self.width, "bits": bits}

    @classmethod
    def from_dict(cls, values: Any) -> Roi:
        """Return the region of JSON values, which are checked here.

        Raises
        ------
        ValueError
            When `to_dict` cannot have written the values.
        """
        if not isinstance(values, dict) or set(values) != {"height", "width", "bits"}:
            raise ValueError("a region of interest has exactly height, width and bits")
        height, width, bits = values["height"], values["width"], values["bits"]
        for side in (height, width):
            if type(side) is not int or not 1 <= side <= LARGEST:
                raise ValueError(f"a side of a region of interest must be from 1 to {LARGEST}")
        try:
            data = base64.b64decode(bits, validate=True)
        except (TypeError, ValueError, binascii.Error):
            raise ValueError("the bits of a region of interest must be base64") from None
        found = cls(height, width, data)
        if len(data) != -(-height * width // 8) or not found._mask.any():
            raise ValueError("the bits of a region of interest do not fit its size, or are none")
        return found


@dataclass(frozen=True, eq=False)
class Cover:
    """A region, and the values that replace everything outside it in an image.

    Parameters
    ----------
    roi : Roi
    fill : ndarray, (channels, 1, 1) or (channels, height, width) of the image, float32
        Values as the networks see them, in [-1, 1] or [-3, 3].
    """

    roi: Roi
    fill: Floats

    @classmethod
    def grey(cls, roi: Roi, channels: int) -> Cover:
        """Cover that fills with mid-grey (0)."""
        return cls(roi, np.zeros((channels, 1, 1), np.float32))

    def over(
        self,
        values: NDArray[Any],
        corner: tuple[int, int],
        whole: tuple[int, int],
        fit: Fit | None = None,
    ) -> NDArray[Any]:
        """Return a part (channels, h, w) of an image as networks see it, with the fill outside.

        `corner` (its top left) and `whole` (the size of the image) are (rows, columns). With a
        `fit`, the image is a square in which the region lies as the image does. Padding stays.
        """
        _, height, width = values.shape
        fill = self.fill
        if fill.shape[1:] != (1, 1):
            fill = fill[:, corner[0] : corner[0] + height, corner[1] : corner[1] + width]
        if fit is None:
            inside = self.roi.part(corner, (height, width), whole)
        else:
            size = fit.height, fit.width
            inside = fit.on_square(self.roi.part((0, 0), size, size), True)
            inside = inside[corner[0] : corner[0] + height, corner[1] : corner[1] + width]
        return np.where(inside, values, fill)
