"""The real images that an exported file is checked with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from anoscan.core.arrays import evenly
from anoscan.core.errors import InputError
from anoscan.core.results import Skipped
from anoscan.core.runtime import random_stream
from anoscan.images.canvas import Canvas
from anoscan.images.decode import Decoded, ImageRule, decode_all
from anoscan.images.files import find
from anoscan.images.layout import query_paths, training_paths
from anoscan.images.roi import Cover
from anoscan.model import history
from anoscan.model.model import Model
from anoscan.networks.augmentation import with_defects

MOST = 64  # images that a file is checked with; as many more have planted defects
_TRAININGS = ("train", "retrain", "redo")  # in a history: what was done with training images
_HINT = "Name a folder of real images with --images."
Samples = NDArray[Any]


@dataclass(frozen=True)
class RealImages:
    """Images as a graph takes them.

    Parameters
    ----------
    samples : ndarray of shape (n, c, s, s), uint8 or float32
    source : {'images', 'training', 'thumbnails'}
        Whether a user named them, or they are training images, or those that the model keeps.
    skipped : tuple of Skipped
    """

    samples: Samples
    source: str
    skipped: tuple[Skipped, ...] = ()


def gather(model: Model, file: Path, paths: Sequence[str | Path], workers: int) -> RealImages:
    """Return at most `MOST` images, evenly chosen: those of `paths`, or else of the training.

    Where its folders are gone, thumbnails that the model keeps take their place, if these have the
    size that its networks see.

    Parameters
    ----------
    model : Model
    file : Path
        The file of the model, whose history names the folders.
    paths : sequence of paths
        Files and folders; none for the images of the training.
    workers : int

    Raises
    ------
    InputError
        When there are no such images, or none of them can be read.
    """
    if paths:
        return _read(query_paths(paths)[0], "images", model.rule, workers)
    folders = _trained_on(file)
    if folders and all(Path(folder).exists() for folder in folders):
        return _read(training_paths(folders)[0], "training", model.rule, workers)
    kept, rule = model.neighbours, model.rule
    if kept is not None and rule.window is None and kept.thumbnails.shape[-1] == rule.size:
        rows = evenly(np.arange(len(kept.thumbnails)), MOST)
        return RealImages(kept.thumbnails[rows], "thumbnails")
    missing = [folder for folder in folders if not Path(folder).exists()]
    where = f"{missing[0]} is gone" if missing else "it is not known where they were"
    raise InputError(
        f"the images that {file.stem} learned from cannot be read again: {where}.", hint=_HINT
    )


def _trained_on(file: Path) -> tuple[str, ...]:
    trainings = [event for event in history.events(file) if event.action in _TRAININGS]
    return trainings[-1].folders if trainings else ()


def _read(paths: Sequence[str | Path], source: str, rule: ImageRule, workers: int) -> RealImages:
    files = find(paths)
    some = [files[row] for row in evenly(np.arange(len(files)), MOST)]
    found, skipped = [], []
    for outcome in decode_all(some, rule, workers=workers):
        if isinstance(outcome, Decoded):
            found.append(as_input(outcome.pixels, rule))
        else:
            skipped.append(outcome)
    if not found:
        raise InputError(f"none of the {len(skipped)} images of the check can be read.", hint=_HINT)
    return RealImages(np.stack(found), source, tuple(skipped))


def as_input(pixels: NDArray[np.float32], rule: ImageRule) -> Samples:
    """Return images (..., c, s, s) as networks see them, as the samples that a graph takes."""
    if rule.window is None:
        return ((pixels.clip(-1, 1).astype(np.float64) + 1) * 127.5).round().astype(np.uint8)
    low, high = rule.window
    levels = (pixels.astype(np.float64) + 1) / 2 * (high - low) + low
    return levels.astype(np.float32)


def as_seen(samples: Samples, rule: ImageRule) -> NDArray[np.float32]:
    """Return samples (n, c, s, s) as networks see them; it is what anoscan does with files."""
    cover = None if rule.roi is None else Cover.grey(rule.roi, rule.channels)
    rows = (np.moveaxis(image, 0, 2) for image in samples)
    canvases = (Canvas(row, rule.channels, rule.window, cover) for row in rows)
    return np.stack([canvas.whole() for canvas in canvases])


def planted(samples: Samples, rule: ImageRule) -> Samples:
    """Return the images with a synthetic defect in most, so that some are anomalous."""
    x = torch.from_numpy(as_seen(samples, rule))
    changed = with_defects(x, random_stream(0, "export")).numpy()
    return as_input(changed, rule)
