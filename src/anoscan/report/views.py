"""Views of one scored image, and the picture files that are written of it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from anoscan.core.config import SMALLEST_SIZE
from anoscan.core.errors import InputError
from anoscan.core.results import ImageScore
from anoscan.images.canvas import Canvas
from anoscan.images.decode import Decoded, ImageRule, decode_one
from anoscan.images.tiles import LARGEST_PICTURE
from anoscan.model.judge import MeasuredImage
from anoscan.model.model import Model
from anoscan.report import pictures
from anoscan.report.map_files import MapFiles
from anoscan.scoring.tiled import OnRows


@dataclass(frozen=True)
class ImageViews:
    """Everything needed to draw one image as the model saw it.

    Parameters
    ----------
    decoded : Decoded
    x_hat : ndarray of shape (c, h, w), in [-1, 1]
        Reconstruction.
    anomaly_map : ndarray of shape (h, w)
        Anomaly map, or the residual when the model has no maps.
    scale : float
        Value of the map that gets the brightest colour.
    rule : ImageRule
        How the model decodes images.
    """

    decoded: Decoded
    x_hat: np.ndarray
    anomaly_map: np.ndarray
    scale: float
    rule: ImageRule

    @classmethod
    def of(cls, model: Model, decoded: Decoded, measured: MeasuredImage) -> ImageViews:
        """Make the views of a measured image."""
        scale = model.maps.scale.brightest
        return cls(decoded, measured.x_hat, measured.anomaly_map, scale, model.rule)

    def views(self, side: int) -> pictures.Views:
        """Draw query, reconstruction and map, none with a side over `side` pixels.

        The query is drawn from its own resolution, which may be finer than what the networks see.
        """
        small = self._canvas.reduced(2 * side)
        return pictures.views(small, self.x_hat, self.anomaly_map, self.scale, side=side)

    @cached_property
    def _canvas(self) -> Canvas:
        return own_canvas(self.decoded, self.rule)


OnImage = Callable[[ImageScore, ImageViews], None]


class ViewFiles:
    """Writes the files of each image: a panel with its residual, and files of its map.

    `residuals` is the folder for PNGs of query, reconstruction and residual. Without it, or without
    `maps`, those files are not written.
    """

    def __init__(self, model: Model, residuals: Path | None, maps: MapFiles | None) -> None:
        self._model, self._residuals, self._maps = model, residuals, maps

    @property
    def drawn(self) -> bool:
        """Whether reconstructions and residuals are drawn."""
        return self._residuals is not None

    def rows_for(self, canvas: Canvas) -> OnRows | None:
        """Return what takes the rows of the map of a large image, or None if nothing is needed."""
        return None if self._maps is None else self._maps.spool(canvas)

    def write(
        self, image: ImageScore, decoded: Decoded, measured: MeasuredImage, level: float
    ) -> ImageScore:
        """Write the files of one image, and return its result with their paths.

        A mask is white where the map is above `level`.

        Raises
        ------
        InputError
            When a file cannot be written.
        """
        return dataclasses.replace(
            image,
            residual=self._panel(image, decoded, measured),
            maps=self._map_files(decoded, measured, level),
        )

    def _panel(self, image: ImageScore, decoded: Decoded, measured: MeasuredImage) -> str | None:
        """Write the panel: query, reconstruction, residual, nearest training images."""
        if self._residuals is None:
            return None
        model = self._model
        like: Iterable[np.ndarray] = ()
        if model.neighbours is not None and image.nearest:
            like = model.neighbours.thumbnails_of(image.nearest) / 127.5 - 1
        target = pictures.output_path(self._residuals, decoded.image.inside)
        panel = pictures.panel(
            decoded.canvas.reduced(LARGEST_PICTURE),
            measured.x_hat,
            measured.residual,
            model.calibration.picture_scale,
            # Whole images are seen as squares and get their ratio back. Patches have kept it.
            shape=decoded.shape if model.rule.patch is None else None,
            like=like,
        )
        pictures.save_png(panel, target)
        return target.as_posix()

    def _map_files(
        self, decoded: Decoded, measured: MeasuredImage, level: float
    ) -> dict[str, str] | None:
        model, files = self._model, self._maps
        if files is None:
            return None
        canvas = own_canvas(decoded, model.rule) if files.drawn else decoded.canvas
        return files.write(decoded, canvas, measured.anomaly_map, level, model.maps.scale)


def own_canvas(decoded: Decoded, rule: ImageRule) -> Canvas:
    """Return the image at its own resolution, or as the networks see it if it is too small."""
    if rule.patch is not None or decoded.shape == (rule.size, rule.size):
        return decoded.canvas
    # A rule whose patches are not resized (`patch` equals `size`) keeps the pixels of the file.
    own = dataclasses.replace(rule, size=SMALLEST_SIZE, patch=SMALLEST_SIZE)
    try:
        return decode_one(decoded.image, own).canvas
    except InputError:  # the image is narrower than a patch, or the file is gone by now
        return decoded.canvas
