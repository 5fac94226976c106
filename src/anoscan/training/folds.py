"""Calibration by folds: where normal images are few, training images calibrate too.

Each fold of the training images is measured by an encoder, a rotation stage and terms that learned
only from the other folds. This is cross-conformal prediction (Vovk 2015, arXiv 1208.0806). The GAN
is shared by all folds: what it learned by heart can make their scores lower than those of new
images.
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
from anoscan.networks.loop import Position, Stage
from anoscan.networks.stages import Planned, Stages
from anoscan.scoring.fitting import fit_all
from anoscan.scoring.measure import Measurer


@dataclass(frozen=True)
class Folds:
    """Everything that folds are trained with.

    `after_gan` are the networks at the end of the GAN stage; only ``--mapping bigan`` has trained
    the encoder by then. Each fold has a rotation stage where the training has kept its own
    (`rotated`). `few` says whether the training had few images; see `Stages`. `config` is resolved.
    `on_progress` gets a `Progress` of the stage ``folds``, and `stopping` is asked between steps.
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
        """Add the terms of the training images to a calibration, where the settings ask for folds.

        Terms are fitted on the rows `usual` alone (all training images but the suspects). They are
        measured on all training images, because otherwise the threshold would be too low. Regions
        keep the level that held-out images set. `names` has the terms in the order of their
        columns.

        Raises
        ------
        TrainingInterrupted
            When `stopping` said yes.
        TrainingDiverged
            When losses or weights were not finite too often.
        """
        if self.config.calibration_folds is None:
            return calibration
        rows, draw = self.material.rows, random_stream(self.config.seed, "folds")
        groups = self.material.groups
        folds = dealt([groups[row] for row in rows], self.config.calibration_folds, draw)
        if len(folds) == 1:  # all images belong to one group, and without it none are left
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
        """Train on `rows` what comes after the GAN, and return the networks, frozen."""
        networks, pixels = copy.deepcopy(self.after_gan), self.material.pixels
        suffix = f"-fold{number}"
        stages = Stages(pixels, rows, self.config, self.runtime, self.few, suffix)
        if self.rotated and (rotation := stages.rotation(networks.discriminator)):
            self._run(rotation)
        if encoder := stages.encoder(networks):
            self._run(encoder)
        if reconstruction := stages.reconstruction(networks):
            self._run(reconstruction)
            reconstruction.stage.correct()
        return networks.frozen(self.runtime.measuring().device)

    def _run(self, planned: Planned[Stage]) -> None:
        planned.run(
            Position(),
            on_progress=lambda now: self.on_progress(dataclasses.replace(now, stage="folds")),
            # Checkpoints do not hold folds: a resumed run trains them again.
            checkpoint=lambda where: None,
            stopping=self.stopping,
        )

    def _measured(
        self, networks: Networks, names: list[str], rows: np.ndarray, inside: np.ndarray
    ) -> np.ndarray:
        """Fit terms on `rows`, and return the raw terms (n, k) of the images `inside` (n,)."""
        pixels, device = self.material.pixels, self.runtime.measuring().device
        fitted, _ = fit_all(networks, names, pixels, rows, self.config.seed, device)
        return Measurer(networks, fitted, self.material.rule).terms(pixels, inside)
