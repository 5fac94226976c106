"""The yardstick of a model, made: normal images that no network saw, measured as queries are.

At the end of a training they are the held-out ones; ``anoscan calibrate`` takes new ones.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch

from anoscan.core.arrays import evenly
from anoscan.core.runtime import Runtime
from anoscan.dataset.material import Material
from anoscan.images.mismatch import Looks
from anoscan.model.judge import Judge
from anoscan.model.model import Calibration, Model
from anoscan.model.patch_test import MOST_IMAGES, term_weights
from anoscan.scoring.baselines import Baselines
from anoscan.scoring.calibration import tile_moments
from anoscan.scoring.maps import MOST_HELD_OUT
from anoscan.scoring.measure import CHUNK, Measured, Measurer
from anoscan.scoring.tiled import Tiled, measure_tiled, views


@dataclass(frozen=True)
class HeldOutMeasured:
    """What held-out normals gave.

    Parameters
    ----------
    calibration : Yardstick
    missed : float
        Squared residual of their reconstructions, relative to that of the mean image.
    large : list of Tiled
        Of a model of patches: the images, tile by tile.
    """

    calibration: Calibration
    missed: float
    large: list[Tiled]

    def complete(self, model: Model, runtime: Runtime) -> Model:
        """Model with this yardstick, which then knows the tiles of large images too."""
        model = dataclasses.replace(model, calibration=self.calibration)
        if not self.large:
            return model
        moments = np.stack([tile_moments(image.terms) for image in self.large])
        calibration = dataclasses.replace(self.calibration, tiles=moments)
        if model.maps is not None:
            return dataclasses.replace(model, calibration=calibration)
        judge = Judge(dataclasses.replace(model, calibration=calibration), runtime)
        peaks = np.array([judge.tile_map(image.terms, image.grid).max() for image in self.large])
        return dataclasses.replace(
            model, calibration=dataclasses.replace(calibration, region_peaks=peaks)
        )


@dataclass(frozen=True)
class HeldOut:
    """Some held-out images, measured.

    `error` (n,) is the mean squared residual of each; `mean_error` (n,) that of the mean image;
    `level` the residual that the brightest thousandth of the pixels of all reaches. `tiled` is set
    for a large image, which comes alone.
    """

    measured: Measured
    error: np.ndarray
    mean_error: np.ndarray
    level: float
    tiled: Tiled | None = None


def measured(measurer: Measurer, baselines: Baselines, material: Material) -> Iterator[HeldOut]:
    """Held-out images, measured just as queries are."""
    rule, rows, inside = material.rule, material.held_out, material.inside
    if rule.patch is not None:
        for decoded in material.large(rows):
            mapped = measurer.maps is not None
            tiled = measure_tiled(measurer, decoded, picture=False, mapped=mapped)
            means = [baselines.scores(x)["mean_image"] for x in views(decoded, rule)]
            mean = np.concatenate(means).mean(keepdims=True)
            yield HeldOut(tiled.measured, np.array([tiled.error]), mean, tiled.level, tiled)
        return
    for start in range(0, len(rows), CHUNK):
        x = np.ascontiguousarray(material.pixels[rows[start : start + CHUNK]])
        found = measurer.measure(torch.from_numpy(x).to(measurer.device), mapped=True)
        error = np.square(x - found.x_hat).mean((1, 2, 3))
        residual = found.residual
        if inside is not None:
            residual = residual[:, inside]
            found = dataclasses.replace(found, anomaly_map=np.where(inside, found.anomaly_map, 0))
        level = float(np.quantile(residual, 0.999))
        yield HeldOut(found, error, baselines.scores(x)["mean_image"], level)


def measure_held_out(
    measurer: Measurer, baselines: Baselines, material: Material, seed: int
) -> HeldOutMeasured:
    """Measure the held-out images of `material`, and how far each term can be trusted."""
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
    # Twice what the brightest residuals of normals reach: a normal image looks calm.
    scale = max(2 * float(np.mean(levels)), 1e-3)
    clean, some = np.concatenate(terms), evenly(material.unseen, MOST_IMAGES)
    views = np.ascontiguousarray(material.pixels[some])
    # Of a large image the self-test changes parts, so it needs what the same parts were before.
    before = clean if not large else measurer.terms(views)
    weights = term_weights(measurer, views, before, np.concatenate(own_weights), seed)
    all_peaks = np.concatenate(peaks) if peaks else np.empty(0)
    maps = measurer.maps
    if maps is not None and maps.peaks is not None and not large:
        calibrated = evenly(np.arange(len(all_peaks)), MOST_HELD_OUT)
        all_peaks[calibrated] = maps.peaks
    calibration = Calibration(clean, weights, scale, all_peaks, looks=Looks.of(material.looks))
    mean_error = float(np.mean(np.concatenate(mean_errors)))
    missed = float(np.mean(np.concatenate(errors))) / max(mean_error, 1e-12)
    return HeldOutMeasured(calibration, missed, large)
