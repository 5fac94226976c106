"""Reports that a long job makes while it runs."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field

# What a stage is called where its progress is shown.
STAGES = {
    "reading": "reading images",
    "gan": "learning normal",
    "rotation": "learning rotations",
    "encoder": "learning to map",
    "encoder-2": "learning to map again",
    "encoder-3": "learning to map again",
    "reconstruction": "learning to reconstruct",
    "reconstruction-2": "learning to reconstruct again",
    "reconstruction-3": "learning to reconstruct again",
    "folds": "calibrating in folds",
    "calibration": "calibrating",
    "scoring": "scoring",
}


@dataclass(frozen=True)
class Progress:
    """How far one stage of a job is.

    Parameters
    ----------
    stage : str
        Name of the stage, such as "gan", "reading" or "scoring".
    images, total_images : int
        Images that are done, and images of the whole stage. In "calibration", which is all that
        follows the training of the networks, they count parts of the work instead.
    losses : dict of str to float
        Means of the losses since the last report.
    images_per_second : float
        It is 0 where it is not known.
    note : str, optional
        A message to show to the user.
    tiles : (int, int), optional
        For a large image: how many of its tiles are measured, and how many it has.
    """

    stage: str
    images: int
    total_images: int
    losses: dict[str, float] = field(default_factory=dict)
    images_per_second: float = 0.0
    note: str | None = None
    tiles: tuple[int, int] | None = None


OnProgress = Callable[[Progress], None]


def notify(on_progress: OnProgress, stage: str, note: str | None, total: int = 0) -> None:
    """Report a note at the start of a stage of `total` images; do nothing without a note."""
    if note:
        on_progress(Progress(stage, 0, total, note=note))


def on_reading(on_progress: OnProgress) -> Callable[[int, int], None]:
    """Return a function that reports reading: it takes the files read so far and all files."""
    start = time.monotonic()

    def report(done: int, total: int) -> None:
        speed = done / max(time.monotonic() - start, 1e-9)
        on_progress(Progress("reading", done, total, images_per_second=speed))

    return report
