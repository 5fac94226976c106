"""Regions: the connected parts of an anomaly map that no normal image would have."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from anoscan.core.arrays import Floats
from anoscan.core.results import Region
from anoscan.images.decode import Decoded, stored_box
from anoscan.images.tiles import block_side
from anoscan.scoring import calibration


def find(
    decoded: Decoded, anomaly_map: Floats, level: float, peaks: NDArray[np.float64]
) -> tuple[Region, ...]:
    """Connected parts of a map (8-connected) above a level, worst first.

    Parameters
    ----------
    decoded : Decoded
        The image, upright.
    anomaly_map : ndarray of shape (h, w)
        Its map.
    level : float
        What every place of a region exceeds.
    peaks : ndarray of shape (n,)
        Highest values of the maps of held-out normals.

    Returns
    -------
    tuple of Region
        In pixels of the image as stored.
    """
    finder = Finder(level)
    finder.add(0, anomaly_map)
    return finder.found(decoded, _extent(decoded, anomaly_map), peaks)


class Finder:
    """Connected parts of a map that comes in rows, all of it, from the top down.

    What crosses from some rows to the next is several pieces at first.
    """

    def __init__(self, level: float) -> None:
        self._level = level
        self._last = np.zeros(0, np.intp)  # number of the piece that each pixel of it is in, from 1
        self._count = 0
        # Of pieces: top, left, bottom, right; highest value; pixels. And which ones touch.
        self._boxes: list[NDArray[np.intp]] = [np.zeros((0, 4), np.intp)]
        self._peaks: list[NDArray[np.float64]] = [np.zeros(0)]
        self._cells: list[NDArray[np.intp]] = [np.zeros(0, np.intp)]
        self._touching: list[NDArray[np.intp]] = [np.zeros((2, 0), np.intp)]

    def add(self, top: int, rows: Floats) -> None:
        """Take rows (h, width) that begin at `top`."""
        labels, count = ndimage.label(rows > self._level, structure=np.ones((3, 3)))
        first, last = (
            np.where(edge > 0, edge + self._count, 0).astype(np.intp) for edge in labels[[0, -1]]
        )
        above = np.pad(self._last if self._last.size else np.zeros_like(first), 1)
        for shift in range(3):  # corners count
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
        """Regions, worst first; `extent` is how many rows and columns make up the image."""
        boxes, cells, highest = self._joined()
        down, across = extent
        p = calibration.p_values(highest, peaks)
        whole = decoded.width * decoded.height
        regions = []
        for (top, left, bottom, right), count, peak, p_value in zip(
            boxes.tolist(), cells.tolist(), highest.tolist(), p.tolist(), strict=True
        ):
            x, y, width, height = stored_box(
                left / across,
                top / down,
                min(right / across, 1),
                min(bottom / down, 1),
                width=decoded.width,
                height=decoded.height,
                orientation=decoded.orientation,
            )
            area = min(max(round(count / (down * across) * whole), 1), width * height)
            regions.append(
                Region(x=x, y=y, width=width, height=height, score=peak, area=area, p_value=p_value)
            )
        return tuple(sorted(regions, key=lambda region: -region.score))

    def _joined(self) -> tuple[NDArray[np.intp], NDArray[np.intp], NDArray[np.float64]]:
        """Boxes (n, 4), pixels (n,) and peaks (n,) of pieces put together."""
        a, b = np.concatenate(self._touching, 1)
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


def _extent(decoded: Decoded, anomaly_map: Floats) -> tuple[float, float]:
    """Cells of the map that make up the image; the last ones may reach beyond it."""
    height, width = decoded.canvas.height, decoded.canvas.width
    block = block_side(height, width)
    if anomaly_map.shape == (-(-height // block), -(-width // block)):
        return height / block, width / block
    return float(anomaly_map.shape[0]), float(anomaly_map.shape[1])
