"""Draw predictions as a figure; this needs Matplotlib (the extra ``plots``)."""

from __future__ import annotations

import io
from collections.abc import Sequence

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image

from anoscan.core.files import printable
from anoscan.core.results import ImageScore
from anoscan.report.plots import ANOMALOUS, NORMAL

_COLUMNS = 2
_WIDTH, _HEIGHT, _HEAD = 5.0, 1.9, 0.9  # inches of a picture with its title, and of the heading
_LONGEST = 32  # characters of a name


class _Shown(Figure):
    """A figure that a notebook shows, whether or not pyplot was imported there."""

    def _repr_png_(self) -> bytes:
        stream = io.BytesIO()
        self.savefig(stream, format="png")
        return stream.getvalue()


def drawn(shown: Sequence[tuple[ImageScore, Image.Image]], heading: str) -> Figure:
    """Draw pictures of images in two columns, each under its name, score and verdict."""
    rows = max(1, -(-len(shown) // _COLUMNS))
    high = _HEAD + rows * _HEIGHT
    figure = _Shown(figsize=(_COLUMNS * _WIDTH, high), dpi=100, layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(_printable_lines(heading), fontsize=10, parse_math=False)
    axes = list(figure.subplots(rows, _COLUMNS, squeeze=False).flat)
    for place in axes:
        place.set_axis_off()
    for place, (image, picture) in zip(axes, shown, strict=False):
        place.imshow(picture)
        colour = ANOMALOUS if image.verdict == "anomalous" else NORMAL
        title = f"{_short(image.path)}  {image.score:.3f}  {image.verdict}"
        place.set_title(title, fontsize=9, color=colour, parse_math=False)
    return figure


def _printable_lines(text: str) -> str:
    """Return lines of a text without control characters."""
    return "\n".join(map(printable, text.split("\n")))


def _short(name: str) -> str:
    plain = printable(name)
    if len(plain) <= _LONGEST:
        return plain
    return f"{plain[: _LONGEST // 2 - 2]}...{plain[-(_LONGEST // 2 - 1) :]}"
