"""Let images that a person has looked at join the calibration of a model.

Normal images join the held-out normals that set the threshold. Anomalies only show what the new
threshold finds: no part of the model depends on them.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

import anoscan
from anoscan.core.results import Review, Skipped
from anoscan.core.runtime import Runtime
from anoscan.dataset.material import Material
from anoscan.evaluation.labels import gather
from anoscan.images.files import ImageFile
from anoscan.images.mismatch import Looks
from anoscan.model.held_out import measured
from anoscan.model.judge import TERMS_ALONE, Judge, nothing_readable
from anoscan.model.model import Model
from anoscan.scoring.calibration import tile_moments
from anoscan.scoring.choices import DEFAULT_SCORE, ScoreRequest

_CHUNK = 64


@dataclass(frozen=True)
class Reviewed:
    """Labelled images with their terms, and how many of the normal ones joined the calibration.

    Parameters
    ----------
    labels : Path
    normals, anomalies : ndarray of shape (n, k) and (m, k)
        The raw terms of the images that could be read.
    paths : tuple of str
        The paths of the m anomalies.
    joined : int
    missing : tuple of str
        Paths of the CSV where no image is.
    skipped : tuple of Skipped
    """

    labels: Path
    normals: np.ndarray
    anomalies: np.ndarray
    paths: tuple[str, ...]
    joined: int
    missing: tuple[str, ...]
    skipped: tuple[Skipped, ...]

    def review(self, before: Judge, after: Judge) -> Review:
        """Say what two models call these images: the one before the change and the one after."""
        old, new = (judge.threshold(ScoreRequest()).score for judge in (before, after))
        alarms = [_above(judge, self.normals) for judge in (before, after)]
        found = [_above(judge, self.anomalies) for judge in (before, after)]
        return Review(
            labels=str(self.labels),
            threshold_before=old,
            threshold=new,
            normal=len(self.normals),
            joined=self.joined,
            known=len(self.normals) - self.joined,
            alarms_before=int(alarms[0].sum()),
            alarms=int(alarms[1].sum()),
            anomalous=len(self.anomalies),
            found_before=int(found[0].sum()),
            found=int(found[1].sum()),
            missed=tuple(p for p, hit in zip(self.paths, found[1], strict=True) if not hit),
            missing=self.missing,
            warning=_selected(self.joined, len(self.normals), int(alarms[0].sum())),
        )


def _above(judge: Judge, terms: np.ndarray) -> np.ndarray:
    """Say of images (n,) whether their score is above the threshold."""
    if not len(terms):
        return np.zeros(0, np.bool_)
    above: np.ndarray = (
        judge.scorer.scores(terms, DEFAULT_SCORE) > judge.threshold(ScoreRequest()).score
    )
    return above


def _selected(joined: int, normal: int, alarms: int) -> str | None:
    """Warn where normal images were chosen because their scores are high."""
    if not joined or not alarms:
        return None
    return (
        f"{alarms:,} of the {normal:,} labelled normal images were false alarms. False alarms have "
        "higher scores than normal images in general, so the threshold is now rather too high: "
        "fewer normal images are called anomalous than the false-alarm rate says, and more "
        "anomalies may be missed. To calibrate without this, give a folder of normal images that "
        "were not chosen by their scores: anoscan calibrate MODEL IMAGES."
    )


def join(
    model: Model, labels: Path, runtime: Runtime, on_progress: Callable[[int, int], None]
) -> tuple[Model, Reviewed]:
    """Return the model with labelled normal images in its calibration, and what was measured.

    An image joins once: neither a copy of it nor the same labels file changes the model again. The
    networks, the fitted terms and the weights of terms stay as they are. The model itself is
    returned where no image joins.

    Raises
    ------
    InputError
        When the CSV cannot be read, or none of its images can.
    """
    given = gather(labels, None, None)
    normal, anomalous = (
        [item.image for item in given.images if item.anomalous == wanted]
        for wanted in (False, True)
    )
    found = _of_normals(model, normal, runtime, on_progress)
    anomalies, paths, unread = _of_anomalies(model, anomalous, runtime)
    skipped = (*found.material.skipped, *unread)
    if not len(found.terms) and not paths:
        raise nothing_readable(skipped)
    known = set(model.metadata.get("reviewed", ()))
    digests = [digest.hex() for digest in found.material.digests]
    first = {digest: row for row, digest in reversed(list(enumerate(digests)))}
    rows = sorted(row for digest, row in first.items() if digest not in known)
    reviewed = Reviewed(labels, found.terms, anomalies, paths, len(rows), given.missing, skipped)
    return (_joined(model, found, rows, reviewed) if rows else model), reviewed


@dataclass
class _Normals:
    """Normal images as the calibration keeps them; arrays have the order of the material."""

    material: Material
    terms: np.ndarray
    peaks: list[float] = field(default_factory=list)
    moments: list[np.ndarray] = field(default_factory=list)


def _of_normals(
    model: Model,
    files: Sequence[ImageFile],
    runtime: Runtime,
    on_progress: Callable[[int, int], None],
) -> _Normals:
    material = Material.of_normals(
        files,
        model.rule,
        seed=model.config.seed,
        workers=runtime.workers,
        on_progress=on_progress,
        fewest=0,
    )
    found = _Normals(material, np.empty((0, len(model.fitted))))
    terms = [found.terms]
    if len(material.held_out):
        for held in measured(model.measurer, model.baselines, material):
            terms.append(held.measured.terms)
            found.peaks += held.measured.anomaly_map.max(axis=(1, 2)).tolist()
            if held.tiled is not None:
                found.moments.append(tile_moments(held.tiled.terms))
    found.terms = np.concatenate(terms)
    return found


def _of_anomalies(
    model: Model, files: Sequence[ImageFile], runtime: Runtime
) -> tuple[np.ndarray, tuple[str, ...], tuple[Skipped, ...]]:
    """Return raw terms (m, k) and paths of the images that can be read, and the others."""
    terms: list[np.ndarray] = []
    paths: list[str] = []
    skipped: list[Skipped] = []
    for batch in Judge(model, runtime).measured(files, _CHUNK, wanted=TERMS_ALONE):
        for decoded, row, *_ in batch:
            if isinstance(decoded, Skipped):
                skipped.append(decoded)
            else:
                terms.append(row)
                paths.append(decoded.image.path)
    return np.array(terms).reshape(len(terms), -1), tuple(paths), tuple(skipped)


def _joined(model: Model, found: _Normals, rows: Sequence[int], reviewed: Reviewed) -> Model:
    """Return the model with these rows of the normal images in its calibration."""
    before, material = model.calibration, found.material
    looks = Looks.of([material.looks[row] for row in rows])
    kinds = tuple(sorted({*before.looks.kinds, *looks.kinds}))
    peaks = np.array([found.peaks[row] for row in rows], before.region_peaks.dtype)
    tiles = before.tiles
    if tiles is not None:
        tiles = np.concatenate([tiles, [found.moments[row] for row in rows]])
    calibration = dataclasses.replace(
        before,
        terms=np.concatenate([before.terms, found.terms[list(rows)]]),
        region_peaks=np.concatenate([before.region_peaks, peaks]),
        looks=Looks(np.concatenate([before.looks.values, looks.values]), kinds),
        tiles=tiles,
    )
    digests = sorted(material.digests[row] for row in rows)
    event: dict[str, Any] = {
        "action": "calibrate",
        "images": len(calibration.terms),
        "joined": len(rows),
        "skipped": len(reviewed.skipped),
        "sha256": hashlib.sha256(b"".join(digests)).hexdigest(),
        "window": model.metadata["image_rule"]["window"],
        "uses_labels": True,
        "by": anoscan.__version__,
    }
    metadata = model.metadata | {
        "kinds": list(kinds),
        "reviewed": [*model.metadata.get("reviewed", []), *(digest.hex() for digest in digests)],
        "history": [*model.metadata.get("history", []), event],
    }
    return dataclasses.replace(model, calibration=calibration, metadata=metadata)
