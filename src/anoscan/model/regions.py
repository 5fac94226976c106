"""Find regions: the connected parts of an anomaly map that exceed the level of normal images.

An anomalous image may have no such part. Then its hottest place becomes its region.
"""

from __future__ import annotations

import dataclasses

import numpy as np
from numpy.typing import NDArray

from anoscan.core.arrays import Floats
from anoscan.core.results import Region
from anoscan.images.decode import Decoded, stored_box
from anoscan.images.tiles import block_side
from anoscan.scoring import calibration

_SAMPLED = 512  # places along a side of a map, at most, whose median is taken

Box = tuple[int, int, int, int]  # top, left, bottom and right, in rows and columns of a map


def find(
    decoded: Decoded, anomaly_map: Floats, level: float, peaks: NDArray[np.float64]
) -> tuple[Region, ...]:
    """Find the 8-connected parts of a map above a level, highest peak first.

    They are in pixels of the image as stored.

    Parameters
    ----------
    decoded : Decoded
    anomaly_map : ndarray of shape (h, w), float32
        The anomaly map of the upright image, which may be coarser than the image.
    level : float
        Every place of a region exceeds this value.
    peaks : ndarray of shape (n,)
        The highest value in the map of each held-out normal.
    """
    if not (anomaly_map.size and anomaly_map.max() > level):
        return ()
    finder = Finder(level)
    finder.add(0, anomaly_map)
    return finder.found(decoded, _extent(decoded, anomaly_map), peaks)


def hottest(
    decoded: Decoded, anomaly_map: Floats, peaks: NDArray[np.float64]
) -> tuple[Region, ...]:
    """Find the hottest place of a map, as one region that is below the level of normal images.

    It is the connected part around the peak where the map exceeds the middle between its median and
    the peak. From the peak it reaches at most a quarter of the height and of the width of the map.
    It lies inside the region of interest. An empty map has no such place.

    Parameters
    ----------
    decoded : Decoded
    anomaly_map : ndarray of shape (h, w), float32
        The anomaly map of the upright image, which may be coarser than the image.
    peaks : ndarray of shape (n,)
        The highest value in the map of each held-out normal.
    """
    if not anomaly_map.size:
        return ()
    values = _inside(decoded, anomaly_map)
    row, column = map(int, np.unravel_index(values.argmax(), values.shape))
    down, across = ((side - 1) // 4 for side in values.shape)
    top, left = max(0, row - down), max(0, column - across)
    near = values[top : row + down + 1, left : column + across + 1]
    peak = float(values[row, column])
    step = -(-max(values.shape) // _SAMPLED)
    sample = values[::step, ::step]
    median = float(np.median(sample[np.isfinite(sample)])) if np.isfinite(sample).any() else peak
    from scipy import ndimage  # slow to load, and needed where there are regions alone

    labels, _ = ndimage.label(near >= (median + peak) / 2, structure=np.ones((3, 3)))
    part = labels == labels[row - top, column - left]
    ((rows, columns),) = ndimage.find_objects(part.astype(np.uint8))
    box = top + rows.start, left + columns.start, top + rows.stop, left + columns.stop
    p_value = float(calibration.p_values(np.array([peak]), peaks)[0])
    extent = _extent(decoded, anomaly_map)
    found = _region(decoded, extent, box, int(part.sum()), peak, p_value)
    return (dataclasses.replace(found, below_level=True),)


class Finder:
    """Finds the 8-connected parts above `level` of a map whose rows are added from the top down.

    A part that crosses from one block of rows to the next is several pieces, which `found` joins.
    """

    def __init__(self, level: float) -> None:
        self._level = level
        # The last row so far: the number of each pixel's piece, from 1, or 0 outside of pieces.
        self._last = np.zeros(0, np.intp)
        self._count = 0
        # For each piece: its top, left, bottom and right; its highest value; its number of pixels.
        # And the pairs of pieces that touch.
        self._boxes: list[NDArray[np.intp]] = [np.zeros((0, 4), np.intp)]
        self._peaks: list[NDArray[np.float64]] = [np.zeros(0)]
        self._cells: list[NDArray[np.intp]] = [np.zeros(0, np.intp)]
        self._touching: list[NDArray[np.intp]] = [np.zeros((2, 0), np.intp)]

    def add(self, top: int, rows: Floats) -> None:
        """Add rows (h, width) of the map, the first of which has the number `top`."""
        from scipy import ndimage

        labels, count = ndimage.label(rows > self._level, structure=np.ones((3, 3)))
        first, last = (
            np.where(edge > 0, edge + self._count, 0).astype(np.intp) for edge in labels[[0, -1]]
        )
        above = np.pad(self._last if self._last.size else np.zeros_like(first), 1)
        for shift in range(3):  # diagonal neighbours count too
            beside = above[shift : shift + len(first)]
            both = (beside > 0) & (first > 0)
            self._touching.append(np.stack([beside[both], first[both]]) - 1)
        self._last = last
        if not count:
            return
        inside = labels > 0
        owner, peaks = labels[inside] - 1, np.full(count, -np.inf)
        np.maximum.at(peaks, owner, rows[inside])
        boxes = [
            (top + y.start, x.start, top + y.stop, x.stop) for y, x in ndimage.find_objects(labels)
        ]
        self._boxes.append(np.array(boxes, np.intp))
        self._peaks.append(peaks)
        self._cells.append(np.bincount(owner))
        self._count += count

    def found(
        self, decoded: Decoded, extent: tuple[float, float], peaks: NDArray[np.float64]
    ) -> tuple[Region, ...]:
        """Return the regions of all rows that were added, highest peak first.

        Parameters
        ----------
        decoded : Decoded
        extent : (float, float)
            The number of rows and of columns of the map that cover the image.
        peaks : ndarray of shape (n,)
            The highest value in the map of each held-out normal, for the p-values.
        """
        boxes, cells, highest = self._joined()
        p = calibration.p_values(highest, peaks)
        regions = [
            _region(decoded, extent, *found)
            for found in zip(
                boxes.tolist(), cells.tolist(), highest.tolist(), p.tolist(), strict=True
            )
        ]
        return tuple(sorted(regions, key=lambda region: -region.score))

    def _joined(self) -> tuple[NDArray[np.intp], NDArray[np.intp], NDArray[np.float64]]:
        """Join pieces that touch, and return their boxes (n, 4), pixels (n,) and peaks (n,)."""
        a, b = np.concatenate(self._touching, 1)
        if not len(a):
            boxes, cells = np.concatenate(self._boxes), np.concatenate(self._cells)
            return boxes, cells, np.concatenate(self._peaks)
        from scipy.sparse import coo_array  # slow to load, and needed by large images alone
        from scipy.sparse.csgraph import connected_components

        graph = coo_array((np.ones(len(a)), (a, b)), shape=(self._count, self._count))
        n, owner = connected_components(graph, directed=False) if self._count else (0, a)
        pieces = np.concatenate(self._boxes)
        boxes = np.concatenate(
            [np.full((n, 2), np.iinfo(np.intp).max), np.zeros((n, 2), np.intp)], 1
        )
        np.minimum.at(boxes[:, :2], owner, pieces[:, :2])
        np.maximum.at(boxes[:, 2:], owner, pieces[:, 2:])
        peaks, cells = np.full(n, -np.inf), np.zeros(n, np.intp)
        np.maximum.at(peaks, owner, np.concatenate(self._peaks))
        np.add.at(cells, owner, np.concatenate(self._cells))
        return boxes, cells, peaks


def _inside(decoded: Decoded, anomaly_map: Floats) -> Floats:
    """Return the map (h, w) with minus infinity outside the region of interest."""
    height, width = anomaly_map.shape
    inside = decoded.canvas.inside((height, width))
    if inside is None:
        return anomaly_map
    return np.where(inside, anomaly_map, np.float32(-np.inf)) if inside.any() else anomaly_map


def _region(
    decoded: Decoded,
    extent: tuple[float, float],
    box: Box,
    cells: int,
    peak: float,
    p_value: float,
) -> Region:
    """Return the region of a box of the map, of which `cells` places belong to the region."""
    (top, left, bottom, right), (down, across) = box, extent
    x, y, width, height = stored_box(
        left / across,
        top / down,
        min(right / across, 1),
        min(bottom / down, 1),
        width=decoded.width,
        height=decoded.height,
        orientation=decoded.orientation,
    )
    area = round(cells / (down * across) * decoded.width * decoded.height)
    return Region(
        x=x,
        y=y,
        width=width,
        height=height,
        score=peak,
        area=min(max(area, 1), width * height),
        p_value=p_value,
    )


def _extent(decoded: Decoded, anomaly_map: Floats) -> tuple[float, float]:
    """Return the number of rows and columns, maybe fractions, of the map that cover the image."""
    height, width = decoded.canvas.height, decoded.canvas.width
    block = block_side(height, width)
    if anomaly_map.shape == (-(-height // block), -(-width // block)):
        return height / block, width / block
    return float(anomaly_map.shape[0]), float(anomaly_map.shape[1])
