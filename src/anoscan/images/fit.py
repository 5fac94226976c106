"""How a whole image that is not square lies on the square that networks see."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from anoscan.core.errors import InputError

LONGEST = 16  # times that an image may be as long as wide, where it is cropped
LEAST = 2  # cells of the square that are left of the shorter side of a padded image


@dataclass(frozen=True)
class Fit:
    """An image that keeps its shape, in the middle of a square of `side` cells.

    The whole image has `height` x `width` cells. Where that is less than `side`, the rest of the
    square is padding. Where it is more, the image is cropped. Both are whole numbers, so that every
    cell of a map is the same share of the image.
    """

    height: int
    width: int
    side: int

    @classmethod
    def of(cls, how: str, size: tuple[int, int], side: int) -> Fit | None:
        """Return the fit of an upright image of `size` (height, width); None where it is stretched.

        A square image is the same in every fit. `how` is a key of `core.config.FITS`.

        Raises
        ------
        InputError
            When an image is too long to be cropped. The message is the bare reason.
        """
        short, long = sorted(size)
        if how == "stretch" or short == long:
            return None
        if how == "crop" and long > LONGEST * short:
            raise InputError(
                f"is {size[1]}x{size[0]} pixels: too long for a model with --fit crop, which would "
                f"see less than a {LONGEST}th of it"
            )
        unit = side / (long if how == "pad" else short)
        height, width = (max(LEAST, round(length * unit)) for length in size)
        return cls(height, width, side)

    @property
    def crops(self) -> bool:
        """Whether parts of the image are cut off."""
        return max(self.height, self.width) > self.side

    def on_square(self, picture: NDArray[Any], fill: Any) -> NDArray[Any]:
        """Return the square (side, side, ...) of an image (height, width, ...); `fill` pads it."""
        square = np.empty((self.side, self.side, *picture.shape[2:]), picture.dtype)
        square[:] = fill
        there, here = self._places
        square[there] = picture[here]
        return square

    def of_square(self, found: NDArray[Any], outside: Any = 0) -> NDArray[Any]:
        """Return the whole image (..., height, width) of a square (..., side, side).

        What was cropped becomes `outside`.
        """
        there, here = self._places
        if not self.crops:
            return found[..., *there]
        whole = np.full((*found.shape[:-2], self.height, self.width), outside, found.dtype)
        whole[..., *here] = found[..., *there]
        return whole

    def seen(self, shape: tuple[int, int]) -> NDArray[np.bool_]:
        """Return which places of a picture of the whole image, of this shape, are in the square."""
        across = []
        for length, full, (_, here) in zip(
            shape, (self.height, self.width), zip(*self._places, strict=True), strict=True
        ):
            cells = (np.arange(length) + 0.5) * full / length
            across.append((cells > here.start) & (cells < here.stop))
        return np.asarray(np.logical_and.outer(*across), np.bool_)

    @property
    def _places(self) -> tuple[tuple[slice, slice], tuple[slice, slice]]:
        """Rows and columns of the square that show the image, and those of the image."""
        gaps = [(self.side - length) // 2 for length in (self.height, self.width)]
        spans = [min(self.side, length) for length in (self.height, self.width)]
        there, here = (
            [slice(start, start + span) for start, span in zip(starts, spans, strict=True)]
            for starts in ([max(gap, 0) for gap in gaps], [max(-gap, 0) for gap in gaps])
        )
        return (there[0], there[1]), (here[0], here[1])
