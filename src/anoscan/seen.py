"""One image as a model saw it: what was measured, and what can be drawn of it."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np

from anoscan import images, pictures
from anoscan.config import SMALLEST_SIZE
from anoscan.errors import InputError
from anoscan.images import Decoded, ImageRule
from anoscan.regions import Finder
from anoscan.results import Skipped
from anoscan.tiles import Canvas

_NOTHING = np.empty(0)


class Outcome(NamedTuple):
    """What was measured of one image, empty for one that was skipped.

    Parameters
    ----------
    decoded : Decoded or Skipped
    terms : ndarray of shape (k,)
        Raw.
    x_hat : ndarray of shape (c, h, w)
        Reconstruction.
    residual : ndarray of shape (h, w)
    oddness : ndarray of shape (h, w)
        Map, as fine as there is use for.
    finder : Finder or None
        Of an image whose map is coarser than itself: what found the regions in the finer one.
    """

    decoded: Decoded | Skipped
    terms: np.ndarray = _NOTHING
    x_hat: np.ndarray = _NOTHING
    residual: np.ndarray = _NOTHING
    oddness: np.ndarray = _NOTHING
    finder: Finder | None = None


@dataclass(frozen=True)
class Seen:
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
        return images.decode(decoded.image, own).canvas
    except InputError:  # narrower than a patch, or gone by now
        return decoded.canvas
