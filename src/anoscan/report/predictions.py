"""`Predictions`, what `Detector.predict` returns: scores, maps and reconstructions in memory."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, overload

import numpy as np
from PIL import Image

from anoscan.core.errors import UsageError
from anoscan.core.files import printable
from anoscan.core.results import ImageScore, ModelHealth, ModelReference, Skipped, Threshold
from anoscan.report import pictures
from anoscan.report.rows import COLUMNS, row_of

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from pandas import DataFrame

Outcome = ImageScore | Skipped
# Takes places of images; returns image, reconstruction and map beside each other, or None.
Draw = Callable[[Sequence[int]], list[Image.Image | None]]

MOST_SHOWN = 12
PANES = "image | reconstruction | anomaly map"
_FEW = 3  # names in the short form
_HEIGHT = 96  # pixels of a picture in a notebook


@dataclass(frozen=True, eq=False, repr=False)
class Predictions(Sequence[Outcome]):
    """What a model says of images, in the order in which they were given.

    ``predictions[0]`` is the `ImageScore` of the first image, or `Skipped` where it could not be
    read. Such an image has a score and a p-value of NaN and is not anomalous.

    Parameters
    ----------
    results : tuple of ImageScore and Skipped
    threshold : Threshold
        An image is anomalous where its score is higher than ``threshold.score``.
    model : ModelReference
    health : ModelHealth
        Health of the model, from the checks of its training.
    maps : ndarray of shape (n, h, w), float32, or list of ndarray, or None
        The anomaly maps at the size of each image, in standard deviations of normal images. They
        are in a list where sizes differ, and None unless they were asked for.
    reconstructions : array or tensor like the images, or list, or None
        The normal images that are like these, in their shape, type and grey levels. For files they
        are uint8, or float32 where the files have more than 8 bits.
    draw : callable, optional
        Draws images for `plot`. Predictions that were pickled have none.
    most_shown : int
        Number of images that a notebook shows, at most.
    pages : dict of str to int
        Number of the page of each path that names one.
    weights : dict of str to float
        How much each term counts in the score.
    """

    results: tuple[Outcome, ...]
    threshold: Threshold
    model: ModelReference
    health: ModelHealth
    maps: Any = None
    reconstructions: Any = None
    draw: Draw | None = None
    most_shown: int = MOST_SHOWN
    pages: dict[str, int] = field(default_factory=dict)
    weights: dict[str, float] = field(default_factory=dict)

    @cached_property
    def scores(self) -> np.ndarray:
        """Anomaly scores (n,), float64: higher is more anomalous."""
        return self._column("score")

    @cached_property
    def p_values(self) -> np.ndarray:
        """Conformal p-values (n,), float64: shares of normal images with such a score or more."""
        return self._column("p_value")

    @cached_property
    def anomalous(self) -> np.ndarray:
        """Whether each image is anomalous, (n,) of bool."""
        return np.array([getattr(r, "verdict", None) == "anomalous" for r in self.results], bool)

    @property
    def skipped(self) -> tuple[Skipped, ...]:
        """The images that could not be read, each with its reason."""
        return tuple(result for result in self.results if isinstance(result, Skipped))

    def _column(self, name: str) -> np.ndarray:
        return np.array([getattr(result, name, np.nan) for result in self.results], np.float64)

    def __len__(self) -> int:
        return len(self.results)

    @overload
    def __getitem__(self, index: int) -> Outcome: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[Outcome, ...]: ...
    def __getitem__(self, index: int | slice) -> Outcome | tuple[Outcome, ...]:
        """Return the result of one image, or of several."""
        return self.results[index]

    def __iter__(self) -> Iterator[Outcome]:
        return iter(self.results)

    def __getstate__(self) -> dict[str, Any]:
        return vars(self) | {"draw": None}

    def __repr__(self) -> str:
        names = ", ".join(
            f"{printable(image.path)} {image.score:.3f}" for image in self.ranked(_FEW)
        )
        return f"<Predictions: {self._counts()}>\n{self._level()}\nmost anomalous: {names}"

    def _counts(self) -> str:
        skipped = f", {len(self.skipped):,} skipped" if self.skipped else ""
        images = "image" if len(self) == 1 else "images"
        return f"{len(self):,} {images}, {int(self.anomalous.sum()):,} anomalous{skipped}"

    def _level(self) -> str:
        rate = f"{100 * self.threshold.false_alarm_rate:g} %"
        named = f"model {self.model.name!r}: " if self.model.name else ""
        return f"{named}threshold {self.threshold.score:.3f} at a false-alarm rate of {rate}"

    def ranked(self, most: int | None = None) -> list[ImageScore]:
        """Return the scored images, the most anomalous first, and at most so many."""
        scored = [result for result in self.results if isinstance(result, ImageScore)]
        return sorted(scored, key=lambda image: image.rank or 0)[:most]

    def to_frame(self) -> DataFrame:
        """Return a pandas table with one row for each image, in their order.

        Its columns are those of the results file of ``anoscan score``. The region is the
        one with the highest score. `reason` says why an image was skipped.

        Raises
        ------
        UsageError
            When pandas is not installed.
        """
        if find_spec("pandas") is None:
            raise UsageError(
                "to_frame: pandas is not installed.",
                hint="Install it: python -m pip install 'anoscan[frames]'",
            )
        from pandas import DataFrame

        rows = [row_of(result, self.pages, self.weights) for result in self.results]
        return DataFrame(rows, columns=list(COLUMNS)).astype(_TYPES)

    def plot(self, most: int = MOST_SHOWN) -> Figure:
        """Draw the most anomalous images, their reconstructions and maps, as a Matplotlib figure.

        Raises
        ------
        UsageError
            When Matplotlib is not installed, `most` is no positive number, or the predictions were
            pickled.
        """
        if find_spec("matplotlib") is None:
            raise UsageError(
                "plot: Matplotlib is not installed.",
                hint="Install it: python -m pip install 'anoscan[plots]'",
            )
        if self.draw is None:
            raise UsageError(
                "plot: these predictions were pickled, which leaves the images out.",
                hint="Plot them before, or predict again.",
            )
        if most < 1:
            raise UsageError(f"plot: most must be at least 1. Got {most}.")
        from anoscan.report.prediction_figure import drawn

        shown = self._shown(most)
        return drawn(shown, f"{self._counts()}\n{self._level()}\n{PANES}")

    def _shown(self, most: int) -> list[tuple[ImageScore, Image.Image]]:
        """Return the most anomalous images that can be drawn, with their pictures."""
        if self.draw is None:
            return []
        places = {id(result): place for place, result in enumerate(self.results)}
        images = self.ranked(most)
        drawn = self.draw([places[id(image)] for image in images])
        return [pair for pair in zip(images, drawn, strict=True) if pair[1] is not None]  # type: ignore[misc]

    def _repr_html_(self) -> str:
        """Return a table with pictures of the most anomalous images, for notebooks."""
        rows = []
        for image, drawn in self._shown(self.most_shown):
            name = html.escape(printable(image.path))
            facts = f"{image.score:.3f}</td><td>{image.p_value:.3g}</td><td>{image.verdict}"
            shown = f'<img alt="" height="{_HEIGHT}" src="{_data(drawn)}">'
            rows.append(f"<tr><td>{shown}</td><td>{name}</td><td>{facts}</td></tr>")
        heads = "".join(f"<th>{head}</th>" for head in (PANES, "name", "score", "p", "verdict"))
        words = html.escape(f"{self._counts()}; {self._level()}")
        table = f"<table><tr>{heads}</tr>{''.join(rows)}</table>" if rows else ""
        return f"<p>{words}</p>{table}"


_COUNTS = ("rank", "page", "region_x", "region_y", "region_width", "region_height")
_NUMBERS = ("score", "p_value", "q_value", "region_score")
# Types of the columns in pandas; the others hold text.
_TYPES = (
    dict.fromkeys(COLUMNS, "object")
    | dict.fromkeys(_COUNTS, "Int64")
    | dict.fromkeys(_NUMBERS, "float64")
)


def _data(picture: Image.Image) -> str:
    """Return a picture as the address of an image in HTML."""
    stream = io.BytesIO()
    picture.save(stream, format="PNG")
    return "data:image/png;base64," + base64.b64encode(stream.getvalue()).decode()


def in_a_row(views: pictures.Views) -> Image.Image:
    """Draw image, reconstruction and map beside each other, as `PANES` names them."""
    return pictures.side_by_side(views, 2 * _HEIGHT)
