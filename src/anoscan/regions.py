"""Regions: the connected parts of an anomaly map that no normal image would have."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from anoscan import calibration
from anoscan.images import Decoded, stored_box
from anoscan.results import Region
from anoscan.tiles import block_side

Floats = NDArray[np.float32]


def find(
    decoded: Decoded, oddness: Floats, level: float, peaks: NDArray[np.float64]
) -> tuple[Region, ...]:
    """Connected parts of a map (8-connected) above a level, worst first.

    Parameters
    ----------
    decoded : Decoded
        The image, upright.
    oddness : ndarray of shape (h, w)
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
    labels, count = ndimage.label(oddness > level, structure=np.ones((3, 3)))
    if not count:
        return ()
    boxes, inside = ndimage.find_objects(labels), labels > 0
    owner, highest = labels[inside] - 1, np.full(count, -np.inf)
    np.maximum.at(highest, owner, oddness[inside])
    cells = np.bincount(owner)
    down, across = _extent(decoded, oddness)
    found = []
    for row in range(count):
        rows, columns = boxes[row]
        x, y, width, height = stored_box(
            columns.start / across,
            rows.start / down,
            min(columns.stop / across, 1),
            min(rows.stop / down, 1),
            width=decoded.width,
            height=decoded.height,
            orientation=decoded.orientation,
        )
        share = cells[row] / (down * across)
        found.append(
            Region(
                x=x,
                y=y,
                width=width,
                height=height,
                score=float(highest[row]),
                area=min(max(round(share * decoded.width * decoded.height), 1), width * height),
                p_value=float(calibration.p_values(highest[row : row + 1], peaks)[0]),
            )
        )
    return tuple(sorted(found, key=lambda region: -region.score))


def _extent(decoded: Decoded, oddness: Floats) -> tuple[float, float]:
    """Cells of the map that make up the image; the last ones may reach beyond it."""
    height, width = decoded.canvas.height, decoded.canvas.width
    block = block_side(height, width)
    if oddness.shape == (-(-height // block), -(-width // block)):
        return height / block, width / block
    return float(oddness.shape[0]), float(oddness.shape[1])
