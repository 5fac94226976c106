"""Make the calibration of a model: measure normal images that no network saw, just as queries.

These are the held-out images of a training, or new ones for ``anoscan calibrate``.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch

from anoscan.core.arrays import evenly
from anoscan.dataset.material import Material
from anoscan.images.mismatch import Looks
from anoscan.model.model import Calibration, Model
from anoscan.model.patch_test import MOST_IMAGES, term_weights
from anoscan.scoring.baselines import Baselines
from anoscan.scoring.calibration import tile_moments
from anoscan.scoring.maps import MOST_HELD_OUT
from anoscan.scoring.measure import CHUNK, Measured, Measurer
from anoscan.scoring.tiled import Tiled, measure_tiled, views


@dataclass(frozen=True)
class HeldOutMeasured:
    """The result of measuring the held-out normals.

    Parameters
    ----------
    calibration : Calibration
    missed : float
        The mean squared residual of their reconstructions, divided by that of the mean image.
    large : list of Tiled
        The images tile by tile, in a model of patches; otherwise empty.
    """

    calibration: Calibration
    missed: float
    large: list[Tiled]

    def complete(self, model: Model) -> Model:
        """Return `model` with this calibration; in a model of patches it knows tiles too."""
        if not self.large:
            return dataclasses.replace(model, calibration=self.calibration)
        moments = np.stack([tile_moments(image.terms) for image in self.large])
        calibration = dataclasses.replace(self.calibration, tiles=moments)
        return dataclasses.replace(model, calibration=calibration)


@dataclass(frozen=True)
class HeldOut:
    """Some held-out images, measured.

    Parameters
    ----------
    measured : Measured
    error, mean_error : ndarray of shape (n,)
        The mean squared difference of each image from its reconstruction, and from the mean image.
    level : float
        The 99.9 % quantile of the residual of their pixels.
    tiled : Tiled, optional
        The measured tiles of a large image, which then is the only one.
    """

    measured: Measured
    error: np.ndarray
    mean_error: np.ndarray
    level: float
    tiled: Tiled | None = None


def measured(measurer: Measurer, baselines: Baselines, material: Material) -> Iterator[HeldOut]:
    """Measure held-out images just as queries; yield some at a time, and a large one alone."""
    rule, rows = material.rule, material.held_out
    if rule.patch is not None:
        for decoded in material.large(rows):
            tiled = measure_tiled(measurer, decoded, picture=False, mapped=True)
            means = [baselines.scores(x)["mean_image"] for x in views(decoded, rule)]
            mean = np.concatenate(means).mean(keepdims=True)
            yield HeldOut(tiled.measured, np.array([tiled.error]), mean, tiled.level, tiled)
        return
    mapped = measurer.maps is not None
    for start in range(0, len(rows), CHUNK):
        some = rows[start : start + CHUNK]
        x, inside = np.ascontiguousarray(material.pixels[some]), material.inside_of(some)
        found = measurer.measure(torch.from_numpy(x).to(measurer.device), mapped=mapped)
        error = np.square(x - found.x_hat).mean((1, 2, 3))
        residual = found.residual
        if inside is not None:
            residual = residual[np.broadcast_to(inside, residual.shape)]
        if inside is not None and mapped:
            found = dataclasses.replace(found, anomaly_map=np.where(inside, found.anomaly_map, 0))
        level = float(np.quantile(residual, 0.999))
        yield HeldOut(found, error, baselines.scores(x)["mean_image"], level)


def measure_held_out(
    measurer: Measurer, baselines: Baselines, material: Material, seed: int
) -> HeldOutMeasured:
    """Measure held-out images and set the weights of the terms; `seed` draws the test's patches."""
    terms, own_weights, peaks, levels, errors, mean_errors = [], [], [], [], [], []
    large: list[Tiled] = []
    for held in measured(measurer, baselines, material):
        terms.append(held.measured.terms)
        own_weights.append(held.measured.weights)
        levels.append(held.level)
        errors.append(held.error)
        mean_errors.append(held.mean_error)
        if held.measured.anomaly_map.size:
            peaks.append(held.measured.anomaly_map.max(axis=(1, 2)))
        if held.tiled is not None:
            large.append(held.tiled)
    # Twice the brightest residuals of normal images, whose pictures are to be dark.
    scale = max(2 * float(np.mean(levels)), 1e-3)
    clean, some = np.concatenate(terms), evenly(material.unseen, MOST_IMAGES)
    views = np.ascontiguousarray(material.pixels[some])
    # The patch test changes only some parts of large images and needs their former terms.
    before = clean if not large else measurer.terms(views)
    weights = term_weights(measurer, views, before, np.concatenate(own_weights), seed)
    all_peaks = np.concatenate(peaks) if peaks else np.empty(0)
    maps = measurer.maps
    if maps is not None and maps.peaks is not None and not large:
        calibrated = evenly(np.arange(len(all_peaks)), MOST_HELD_OUT)
        all_peaks[calibrated] = maps.peaks
    calibration = Calibration(clean, weights, scale, all_peaks, Looks.of(material.looks))
    mean_error = float(np.mean(np.concatenate(mean_errors)))
    missed = float(np.mean(np.concatenate(errors))) / max(mean_error, 1e-12)
    return HeldOutMeasured(calibration, missed, large)
