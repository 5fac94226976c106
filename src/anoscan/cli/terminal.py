"""Pictures of the most anomalous images for the terminal: kitty, sixel, or coloured half-blocks."""

from __future__ import annotations

import heapq
import importlib.util
import itertools
import logging
import os
import sys
from collections.abc import Iterator

from PIL import Image
from rich.console import RenderableType

from anoscan.core.errors import UsageError
from anoscan.core.results import ImageScore
from anoscan.report import pictures
from anoscan.report.views import ImageViews

WIDTH = 90  # columns; less in a narrow terminal
_SIDE = 256  # pixels of each picture


def _is_without_size() -> bool:
    try:
        return 0 in os.get_terminal_size(sys.stdout.fileno())
    except (OSError, ValueError):  # not said here; what draws has its own ways to find out
        return False


class Gallery:
    """The pictures of the most anomalous of the images that pass by; the others are forgotten.

    Parameters
    ----------
    most : int
        How many are kept.

    Raises
    ------
    UsageError
        When the library that knows terminals is not installed, or stdout is not a terminal.
    """

    def __init__(self, most: int) -> None:
        if importlib.util.find_spec("textual_image") is None:
            raise UsageError(
                "--show needs the package textual-image.",
                hint="Install it: python -m pip install 'anoscan[show]'",
            )
        if not sys.stdout.isatty():
            raise UsageError(
                "--show needs a terminal, and the output goes elsewhere.",
                hint="Use --residuals or --report for pictures in files.",
            )
        if _is_without_size():
            raise UsageError(
                "--show needs a terminal that says how large it is.",
                hint="Tell it (stty cols 100 rows 40), or use --residuals or --report.",
            )
        self._most = most
        self._order = itertools.count()
        self._kept: list[tuple[float, int, str, Image.Image]] = []

    def add(self, image: ImageScore, seen: ImageViews) -> None:
        """Draw an image if it is among the most anomalous so far."""
        if len(self._kept) == self._most and image.score <= self._kept[0][0]:
            return
        drawn = pictures.side_by_side(seen.views(_SIDE), _SIDE)
        kept = (image.score, -next(self._order), image.path, drawn)
        if len(self._kept) < self._most:
            heapq.heappush(self._kept, kept)
        else:
            heapq.heapreplace(self._kept, kept)

    def show(self, columns: int) -> Iterator[tuple[str, RenderableType]]:
        """Paths and pictures, the most anomalous first, for a terminal of so many columns."""
        # A terminal that does not say how large its characters are is no matter for a traceback.
        logging.getLogger("textual_image").setLevel(logging.ERROR)
        # Not at the top: it asks the terminal what it can do, and waits for the answer.
        from textual_image.renderable import Image as Shown

        for _, _, path, drawn in sorted(self._kept, key=lambda kept: kept[:2], reverse=True):
            yield path, Shown(drawn, width=min(WIDTH, columns))
