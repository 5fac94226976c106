"""Show the most anomalous images in a terminal, by kitty, sixel or coloured half-blocks."""

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

WIDTH = 90  # columns; a narrow terminal has fewer
_SIDE = 256  # pixels of each picture


def _is_without_size() -> bool:
    try:
        return 0 in os.get_terminal_size(sys.stdout.fileno())
    except (OSError, ValueError):  # unknown here; textual_image has other ways to find the size
        return False


class Gallery:
    """Keeps pictures of the `most` most anomalous images so far; the others are not kept.

    Raises
    ------
    UsageError
        When textual-image is not installed, or stdout is not a terminal or has no known size.
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
        drawn = pictures.side_by_side(seen.views(_SIDE, image.regions), _SIDE)
        kept = (image.score, -next(self._order), image.path, drawn)
        if len(self._kept) < self._most:
            heapq.heappush(self._kept, kept)
        else:
            heapq.heapreplace(self._kept, kept)

    def show(self, columns: int) -> Iterator[tuple[str, RenderableType]]:
        """Yield paths and pictures, the most anomalous first, at most `columns` wide."""
        # Otherwise the library logs a traceback when a terminal does not report its cell size.
        logging.getLogger("textual_image").setLevel(logging.ERROR)
        # This import is not at the top, because it queries the terminal and waits for the answer.
        from textual_image.renderable import Image as Shown

        for _, _, path, drawn in sorted(self._kept, key=lambda kept: kept[:2], reverse=True):
            yield path, Shown(drawn, width=min(WIDTH, columns))
