"""What a long job reports while it runs."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Progress:
    """Where a stage of training is. `losses` are means since the last report.

    Of the stage `calibration`, which is everything after networks are trained, `images` and
    `total_images` count its parts. `tiles` says of a large image how many of its tiles are
    measured, and how many there are.
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
    """Report a note at the start of a stage of `total` images; do nothing where there is none."""
    if note:
        on_progress(Progress(stage, 0, total, note=note))


def on_reading(on_progress: OnProgress) -> Callable[[int, int], None]:
    """What to call with the number of files read and of all files."""
    start = time.monotonic()

    def report(done: int, total: int) -> None:
        speed = done / max(time.monotonic() - start, 1e-9)
        on_progress(Progress("reading", done, total, images_per_second=speed))

    return report
