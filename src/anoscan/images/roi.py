"""Where images count: a mask laid over an image of any size, and what stands outside it."""

from __future__ import annotations

import base64
import binascii
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from anoscan.core.arrays import Floats

Bools = NDArray[np.bool_]

LARGEST = 512  # pixels a side that are kept: the most that networks see


@dataclass(frozen=True)
class Roi:
    """A region of interest: a mask, stretched over each image.

    Parameters
    ----------
    height, width : int
        Of the mask, 1 to `LARGEST`.
    bits : bytes
        Its rows one after the other, eight pixels a byte; 1 is inside.
    """

    height: int
    width: int
    bits: bytes

    @classmethod
    def of(cls, mask: Bools) -> Roi:
        """Region of a mask (height, width), True inside, thinned out where it is large.

        Raises
        ------
        ValueError
            When nothing is inside.
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
        """What of a rectangle of an image is inside.

        Parameters
        ----------
        corner, size, whole : (rows, columns)
            The rectangle's top left corner and size, and the image's size.
        """
        rows, columns = (
            ((start + np.arange(length) + 0.5) * side / full).astype(np.intp)
            for start, length, side, full in zip(
                corner, size, (self.height, self.width), whole, strict=True
            )
        )
        return self._mask[np.ix_(rows, columns)]

    def within(self, other: Roi | None) -> Roi:
        """What is inside both.

        Raises
        ------
        ValueError
            When nothing is.
        """
        if other is None:
            return self
        corner, whole = (0, 0), (LARGEST, LARGEST)
        return Roi.of(self.part(corner, whole, whole) & other.part(corner, whole, whole))

    def covers(self, other: Roi | None) -> bool:
        """Whether all of another region, or of the image, is inside."""
        corner, whole = (0, 0), (LARGEST, LARGEST)
        inside = self.part(corner, whole, whole)
        if other is not None:
            inside |= ~other.part(corner, whole, whole)
        return bool(inside.all())

    def to_dict(self) -> dict[str, Any]:
        """Region as JSON values; `from_dict` takes them back."""
        bits = base64.b64encode(self.bits).decode("ascii")
        return {"height": self.height, "width": self.width, "bits": bits}

    @classmethod
    def from_dict(cls, values: Any) -> Roi:
        """Region from JSON values that nobody has checked yet.

        Raises
        ------
        ValueError
            For anything that `to_dict` does not write.
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
    """What stands in an image instead of all that is outside a region.

    Parameters
    ----------
    roi : Roi
    fill : ndarray, (channels, 1, 1) or (channels, height, width) of the image, float32
        As the networks see it.
    """

    roi: Roi
    fill: Floats

    @classmethod
    def grey(cls, roi: Roi, channels: int) -> Cover:
        """Cover of the middle of the range."""
        return cls(roi, np.zeros((channels, 1, 1), np.float32))

    def over(
        self, values: NDArray[Any], corner: tuple[int, int], whole: tuple[int, int]
    ) -> NDArray[Any]:
        """A part (channels, h, w) of an image of size `whole`, covered."""
        _, height, width = values.shape
        fill = self.fill
        if fill.shape[1:] != (1, 1):
            fill = fill[:, corner[0] : corner[0] + height, corner[1] : corner[1] + width]
        inside = self.roi.part(corner, (height, width), whole)
        return np.where(inside, values, fill)
