"""Views of one scored image, and the picture files that are written of it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from PIL import Image

from anoscan.core.config import SMALLEST_SIZE
from anoscan.core.errors import InputError
from anoscan.core.results import ImageScore, Region
from anoscan.images.canvas import Canvas
from anoscan.images.decode import (
    TURNED_BACK,
    Decoded,
    ImageRule,
    decode_one,
    stored_box,
)
from anoscan.images.tiles import LARGEST_PICTURE
from anoscan.model.judge import MeasuredImage
from anoscan.model.model import Model
from anoscan.report import figure, pictures
from anoscan.report.figure import Box, ColourBar, Pane, Title
from anoscan.report.map_files import MapFiles
from anoscan.scoring.tiled import OnRows

_ENLARGED, _ENLARGED_PANE = 384, 320  # pixels: small images are enlarged to about this side
_LARGEST_PANE = 1024  # pixels along a side of each of several panes, at most
_LEGIBLE = 192  # pixels: small views are enlarged to about this side


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
    residual : ndarray of shape (h, w)
        Absolute residual of the pixels; pictures without it do not need it.
    residual_scale : float
        Value of the residual that gets the brightest colour.
    reconstructs : bool
        Whether reconstructions are drawn. Otherwise a placard stands in their place.
    """

    decoded: Decoded
    x_hat: np.ndarray
    anomaly_map: np.ndarray
    scale: float
    rule: ImageRule
    residual: np.ndarray | None = None
    residual_scale: float = 1.0
    reconstructs: bool = True

    @classmethod
    def of(cls, model: Model, decoded: Decoded, measured: MeasuredImage) -> ImageViews:
        """Make the views of a measured image."""
        return cls(
            decoded,
            measured.x_hat,
            measured.anomaly_map,
            model.maps.scale.brightest,
            model.rule,
            measured.residual,
            model.calibration.picture_scale,
            model.reconstructions == "ok",
        )

    def views(self, side: int, regions: Sequence[Region] = ()) -> pictures.Views:
        """Draw query, reconstruction, and map over the query, none with a side over `side` pixels.

        The query is drawn from its own resolution, which may be finer than what the networks see.
        Boxes of `regions` are drawn on the map.
        """
        query = self._picture(self._canvas.reduced(2 * side), side)
        large = pictures.enlarged(query, min(side, _LEGIBLE))
        both = pictures.overlay(large, self.anomaly_map, self.scale)
        if self.reconstructs:
            x_hat = self._picture(self.x_hat, side)
        else:
            x_hat = figure.placard(large.size, figure.NO_RECONSTRUCTION)
        return pictures.Views(query, x_hat, figure.boxed(both, self.boxes(regions)))

    def boxes(self, regions: Iterable[Region]) -> tuple[Box, ...]:
        """Return the boxes of regions in the upright image."""
        return tuple(_upright(region, self.decoded) for region in regions)

    def overlay(self, image: ImageScore) -> Image.Image:
        """Draw the image with its map over it, and with its regions."""
        query = self._query(LARGEST_PICTURE, _ENLARGED)
        return self._figure(image, [self._both(image, query)], self._map_bar)

    def side_by_side(self, image: ImageScore) -> Image.Image:
        """Draw the image, its map, and both, with its regions."""
        query, boxes = self._query(_LARGEST_PANE, _ENLARGED_PANE), self.boxes(image.regions)
        alone = pictures.coloured_at(query.size, self.anomaly_map, self.scale)
        panes = [Pane(query, "image"), Pane(alone, "map", boxes), self._both(image, query)]
        return self._figure(image, panes, self._map_bar)

    def panel(self, image: ImageScore, like: Iterable[np.ndarray]) -> Image.Image:
        """Draw the image, its reconstruction and the residual, and normal images that are like it.

        `like` are images (c, h, w) in [-1, 1]. Where the model does not reconstruct, a placard
        stands for the reconstruction, and the map for the residual.
        """
        query, boxes = self._query(_LARGEST_PANE, _ENLARGED_PANE), self.boxes(image.regions)
        panes, bar = [Pane(query, "image", boxes)], self._map_bar
        if self.reconstructs and self.residual is not None:
            enlarged = max(query.size) > max(self._canvas.height, self._canvas.width)
            how = Image.Resampling.NEAREST if enlarged else Image.Resampling.BILINEAR
            x_hat = self._picture(self.x_hat).resize(query.size, how)
            scale = self.residual_scale
            residual = pictures.coloured_at(query.size, self.residual, scale, how)
            panes += [Pane(x_hat, "reconstruction"), Pane(residual, "residual", boxes)]
            bar = ColourBar(50 * scale, "residual in % of the range of values")
        else:
            card = figure.placard(query.size, figure.NO_RECONSTRUCTION)
            panes += [Pane(card, "no reconstruction"), self._both(image, query)]
        panes += [
            Pane(pictures.enlarged(self._picture(one), _ENLARGED_PANE), "similar normal image")
            for one in like
        ]
        return self._figure(image, panes, bar)

    def _picture(self, x: np.ndarray, side: int | None = None) -> Image.Image:
        """Draw an image (c, h, w) in [-1, 1] in the channels that pictures show."""
        return pictures.picture(self.rule.picture(x), side)

    def _both(self, image: ImageScore, query: Image.Image) -> Pane:
        drawn = pictures.overlay(query, self.anomaly_map, self.scale)
        return Pane(drawn, "map over the image", self.boxes(image.regions))

    def _figure(self, image: ImageScore, panes: Sequence[Pane], bar: ColourBar) -> Image.Image:
        facts = f"score {image.score:.3f}    p-value {image.p_value:.4f}    {image.verdict}"
        title = Title(self.decoded.image.inside, facts, image.verdict == "anomalous")
        return figure.figure(panes, title, bar)

    @property
    def _map_bar(self) -> ColourBar:
        return ColourBar(self.scale, "standard deviations of normal images")

    def _query(self, most: int, side: int) -> Image.Image:
        """Draw the image in its proportions, with at most `most` pixels a side, about `side`."""
        drawn = pictures.enlarged(self._picture(self._canvas.reduced(most)), side)
        high, wide = self.decoded.shape
        if self.rule.patch is None and (self._canvas.height, self._canvas.width) != (high, wide):
            longer = max(drawn.size) / max(high, wide)
            size = (max(1, round(wide * longer)), max(1, round(high * longer)))
            drawn = drawn.resize(size, Image.Resampling.BOX)
        return drawn

    @cached_property
    def _canvas(self) -> Canvas:
        return own_canvas(self.decoded, self.rule)


OnImage = Callable[[ImageScore, ImageViews], None]


class ViewFiles:
    """Writes the files of each image: a panel with its residual, and files of its map.

    `residuals` is the folder for PNGs of query, reconstruction and residual. Without it, or without
    `maps`, those files are not written.
    """

    in_order = False  # whether `write` must be called in the order of the images

    def __init__(self, model: Model, residuals: Path | None, maps: MapFiles | None) -> None:
        self._model, self._residuals, self._maps = model, residuals, maps

    @property
    def drawn(self) -> bool:
        """Whether reconstructions and residuals are drawn."""
        return self._residuals is not None

    def rows_for(self, canvas: Canvas) -> OnRows | None:
        """Return what takes the rows of the map of a large image, or None if nothing is needed."""
        return None if self._maps is None else self._maps.spool(canvas)

    def write(self, image: ImageScore, seen: ImageViews, level: float) -> ImageScore:
        """Write the files of one image, and return its result with their paths.

        A mask is white where the map is above `level`.

        Raises
        ------
        InputError
            When a file cannot be written.
        """
        maps = None
        if self._maps is not None:
            draw = {"overlay": seen.overlay, "side-by-side": seen.side_by_side}
            maps = self._maps.write(
                seen.decoded, seen.anomaly_map, level, lambda form: draw[form](image)
            )
        return dataclasses.replace(image, residual=self._panel(image, seen), maps=maps)

    def _panel(self, image: ImageScore, seen: ImageViews) -> str | None:
        """Write the panel: query, reconstruction, residual, nearest training images."""
        if self._residuals is None:
            return None
        neighbours = self._model.neighbours
        like: Iterable[np.ndarray] = ()
        if neighbours is not None and image.nearest:
            like = neighbours.thumbnails_of(image.nearest) / 127.5 - 1
        target = pictures.output_path(self._residuals, seen.decoded.image.inside)
        pictures.save_png(seen.panel(image, like), target)
        return target.as_posix()


def own_canvas(decoded: Decoded, rule: ImageRule) -> Canvas:
    """Return the image at its own resolution, or as the networks see it if it is too small."""
    canvas = decoded.canvas
    if rule.patch is not None or decoded.shape == (rule.size, rule.size):
        return canvas
    # A rule whose patches are not resized (`patch` equals `size`) keeps the pixels of the file.
    own = dataclasses.replace(rule, size=SMALLEST_SIZE, patch=SMALLEST_SIZE, fit="stretch")
    try:
        return decode_one(decoded.image, own).canvas.covered(canvas.fit)
    except InputError:  # the image is narrower than a patch, or the file is gone by now
        return canvas.image()


def _upright(region: Region, decoded: Decoded) -> Box:
    """Convert the box of a region to shares of the sides of the upright image."""
    turn = decoded.orientation
    size = (decoded.width, decoded.height)
    width, height = size[::-1] if turn >= 5 else size
    left, top, wide, high = stored_box(
        region.x / size[0],
        region.y / size[1],
        (region.x + region.width) / size[0],
        (region.y + region.height) / size[1],
        width=width,
        height=height,
        orientation=TURNED_BACK[turn],
    )
    return Box(left / width, top / height, wide / width, high / height, region.below_level)
