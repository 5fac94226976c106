"""Calibration by folds, where normal images are few: those trained on are calibrated on too.

Each fold of them is measured by an encoder, a rotation stage and terms that learned from the other
folds alone (cross-conformal prediction, Vovk 2015, arXiv 1208.0806). One thing stays shared: the
GAN saw all of them, and took what it can from that.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from anoscan.core.config import TrainConfig
from anoscan.core.progress import OnProgress
from anoscan.core.runtime import Runtime, random_stream
from anoscan.dataset.material import Material
from anoscan.dataset.split import dealt
from anoscan.model.model import Calibration
from anoscan.networks.architectures import Networks
from anoscan.networks.loop import Position, Stage, run
from anoscan.networks.stages import Planned, Stages
from anoscan.scoring.measure import Measurer, chunks, fit_terms


@dataclass(frozen=True)
class Folds:
    """Everything that folds are trained with.

    Parameters
    ----------
    after_gan : Networks
        As the GAN stage left them, the encoder not trained yet (but with the GAN, under `bigan`).
    rotated : bool
        Whether the rotation stage was kept; then each fold has one of its own.
    few : bool
        Whether the discriminator learns gently; as in the training.
    """

    after_gan: Networks
    rotated: bool
    few: bool
    material: Material
    config: TrainConfig
    runtime: Runtime
    on_progress: OnProgress
    stopping: Callable[[], bool]

    def extend(self, calibration: Calibration, names: list[str], usual: np.ndarray) -> Calibration:
        """Yardstick with the terms of the images trained on too, where that was asked for.

        Terms are fitted on the `usual` rows alone, but measured on all: without the others the
        threshold would be too low. Regions keep the level of the held-out images.
        """
        if self.config.calibration_folds is None:
            return calibration
        rows, draw = self.material.rows, random_stream(self.config.seed, "folds")
        groups = self.material.groups
        folds = dealt([groups[row] for row in rows], self.config.calibration_folds, draw)
        if len(folds) == 1:  # of one picture: nothing is left to learn from without it
            return calibration
        terms = [calibration.terms]
        for number, places in enumerate(folds):
            inside = rows[places]
            networks = self._trained(number, np.setdiff1d(rows, inside))
            known = np.setdiff1d(usual, inside)
            known = known if len(known) else np.setdiff1d(rows, inside)
            terms.append(self._measured(networks, names, known, inside))
        return dataclasses.replace(calibration, terms=np.concatenate(terms))

    def _trained(self, number: int, rows: np.ndarray) -> Networks:
        """Networks of a fold: all that comes after the GAN, learned from `rows`."""
        networks, pixels = copy.deepcopy(self.after_gan), self.material.pixels
        suffix = f"-fold{number}"
        stages = Stages(pixels, rows, self.config, self.runtime, self.few, suffix)
        if self.rotated and (rotation := stages.rotation(networks.discriminator)):
            self._run(rotation)
        if encoder := stages.encoder(networks):
            self._run(encoder)
        return networks.frozen(self.runtime.measuring().device)

    def _run(self, planned: Planned[Stage]) -> None:
        run(
            planned.stage,
            steps=planned.steps,
            images_per_step=planned.images_per_step,
            position=Position(),
            on_progress=lambda now: self.on_progress(dataclasses.replace(now, stage="folds")),
            # Folds are not kept: a resumed run trains them again.
            checkpoint=lambda where: None,
            stopping=self.stopping,
        )

    def _measured(
        self, networks: Networks, names: list[str], rows: np.ndarray, inside: np.ndarray
    ) -> np.ndarray:
        """Raw terms (n, k) of a fold."""
        read, device = self.material.pixels.__getitem__, self.runtime.measuring().device
        fitted = fit_terms(networks, names, chunks(rows, read, device))
        return Measurer(networks, fitted, self.material.rule).terms(self.material.pixels, inside)
