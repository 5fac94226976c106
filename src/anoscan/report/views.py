"""One image as a model saw it: what was measured, and what can be drawn of it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from anoscan.core.config import SMALLEST_SIZE
from anoscan.core.errors import InputError
from anoscan.core.results import ImageScore
from anoscan.images.canvas import Canvas
from anoscan.images.decode import Decoded, ImageRule, decode
from anoscan.report import pictures


@dataclass(frozen=True)
class ImageViews:
    """One image as the model saw it, ready to be drawn."""

    decoded: Decoded
    x_hat: np.ndarray
    anomaly_map: np.ndarray
    scale: float
    rule: ImageRule

    def views(self, side: int) -> pictures.Views:
        """Query, reconstruction and map, none with a side over `side` pixels.

        The query has its own resolution.
        """
        small = self._canvas.reduced(2 * side)
        return pictures.views(small, self.x_hat, self.anomaly_map, self.scale, side=side)

    @cached_property
    def _canvas(self) -> Canvas:
        return own_canvas(self.decoded, self.rule)


def own_canvas(decoded: Decoded, rule: ImageRule) -> Canvas:
    """The image at its own resolution; where that is too small to decode, as networks see it."""
    if rule.patch is not None or decoded.shape == (rule.size, rule.size):
        return decoded.canvas
    # A rule of patches as large as they are seen keeps the pixels of the file.
    own = dataclasses.replace(rule, size=SMALLEST_SIZE, patch=SMALLEST_SIZE)
    try:
        return decode(decoded.image, own).canvas
    except InputError:  # narrower than a patch, or gone by now
        return decoded.canvas


OnImage = Callable[[ImageScore, ImageViews], None]
