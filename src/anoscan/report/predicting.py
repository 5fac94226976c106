"""Score images that are at hand, and keep maps and reconstructions in memory."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from anoscan.core.arrays import Floats
from anoscan.core.errors import AnoscanWarning
from anoscan.core.progress import OnProgress
from anoscan.core.results import ImageScore, ModelReference, Skipped
from anoscan.images.canvas import Canvas
from anoscan.images.decode import Decoded
from anoscan.images.files import ImageFile
from anoscan.images.in_memory import Held, HeldImage, together
from anoscan.images.tiles import block_side
from anoscan.model.judge import Judge, nothing_readable
from anoscan.report import predictions
from anoscan.report.map_files import Rows
from anoscan.report.predictions import Outcome, Predictions
from anoscan.report.ranking import Ranking
from anoscan.report.views import ImageViews, ViewFiles
from anoscan.scoring import calibration
from anoscan.scoring.choices import ScoreRequest
from anoscan.scoring.tiled import OnRows
from anoscan.training import health

_GREY = np.array([0.299, 0.587, 0.114], np.float32)  # as in `images.decode`
_SIDE = 256  # pixels of a picture, at most
_FEW_SHOWN = 3  # large images, which take long to measure again


@dataclass(frozen=True)
class Predicting:
    """Scores images as a request asks for.

    `maps` and `reconstructions` say whether they are kept. `model` is named in the results.
    """

    judge: Judge
    request: ScoreRequest
    model: ModelReference
    maps: bool
    reconstructions: bool

    def predict(
        self, files: Sequence[ImageFile], held: Held | None, on_progress: OnProgress
    ) -> Predictions:
        """Score images, which are those of `held` where they are in memory.

        Raises
        ------
        InputError
            When none of the images can be read.
        """
        kept = _Kept(maps=self.maps, reconstructions=self.reconstructions)
        views = kept if self.maps or self.reconstructions else None
        results: list[Outcome] = []
        for place, outcome in enumerate(self._ranking(views, on_progress).stream(files)):
            results.append(outcome)
            if isinstance(outcome, Skipped):
                kept.skip(files[place])
        skipped = [result for result in results if isinstance(result, Skipped)]
        if len(skipped) == len(results):
            raise nothing_readable(skipped)
        if skipped:
            first = f"{skipped[0].path}: {skipped[0].reason}"
            message = f"{len(skipped)} of {len(results)} images are skipped. The first is {first}."
            warnings.warn(message, AnoscanWarning, stacklevel=3)
        back: Any = None
        if self.reconstructions:
            back = _stacked(kept.found) if held is None else held.like(kept.found)
        return Predictions(
            _ranked(results),
            self.judge.threshold(self.request),
            self.model,
            health.of_model(self.model.name, self.judge.model.metadata),
            _stacked(kept.maps) if self.maps else None,
            back,
            _Drawing(self, files),
            predictions.MOST_SHOWN if self.judge.model.rule.patch is None else _FEW_SHOWN,
            {file.path: file.page for file in files if file.page is not None},
            dict(self.judge.scorer.weights(self.request.score)),
        )

    def _ranking(self, views: ViewFiles | None, on_progress: OnProgress) -> Ranking:
        return Ranking(self.judge, self.request, views, None, on_progress)

    def draw(self, files: Sequence[ImageFile]) -> list[Image.Image | None]:
        """Draw images; the place of one that cannot be read (any more) is None."""
        drawn: list[Image.Image | None] = []

        def add(image: ImageScore, seen: ImageViews) -> None:
            drawn.append(predictions.in_a_row(seen.views(_SIDE, image.regions)))

        ranking = dataclasses.replace(self._ranking(None, lambda progress: None), on_image=add)
        for outcome in ranking.stream(files):
            if isinstance(outcome, Skipped):
                drawn.append(None)
        return drawn


class _Drawing:
    """Draws images of a prediction when they are asked for, each once."""

    def __init__(self, predicting: Predicting, files: Sequence[ImageFile]) -> None:
        self._predicting, self._files = predicting, files
        self._drawn: dict[int, Image.Image | None] = {}

    def __call__(self, places: Sequence[int]) -> list[Image.Image | None]:
        left = [place for place in places if place not in self._drawn]
        drawn = self._predicting.draw([self._files[place] for place in left])
        self._drawn |= zip(left, drawn, strict=True)
        return [self._drawn[place] for place in places]


def _ranked(results: Sequence[Outcome]) -> tuple[Outcome, ...]:
    """Return results with ranks, ties by their order, and q-values."""
    found = list(results)
    scored = [(place, r) for place, r in enumerate(results) if isinstance(r, ImageScore)]
    adjusted = calibration.q_values(np.array([image.p_value for _, image in scored]))
    order = np.argsort([-image.score for _, image in scored], kind="stable")
    for rank, row in enumerate(order.tolist(), start=1):
        place, image = scored[row]
        found[place] = dataclasses.replace(image, rank=rank, q_value=float(adjusted[row]))
    return tuple(found)


def _stacked(arrays: Sequence[NDArray[Any] | None]) -> Any:
    """Return arrays as one, or in a list where sizes differ; None is left for a skipped file."""
    found = [array for array in arrays if array is not None]
    return together(found) if len(found) == len(arrays) else list(arrays)


class _Kept(ViewFiles):
    """Takes maps and reconstructions of images, in place of the writer of their files."""

    in_order = True

    def __init__(self, *, maps: bool, reconstructions: bool) -> None:
        self._wanted, self._drawn = maps, reconstructions
        self._rows: Floats | None = None
        self.maps: list[NDArray[Any] | None] = []
        self.found: list[Any] = []

    @property
    def drawn(self) -> bool:
        """Whether reconstructions are wanted."""
        return self._drawn

    def rows_for(self, canvas: Canvas) -> OnRows | None:
        """Return what takes the rows of the map of an image whose map is reduced otherwise."""
        self._rows = None
        if not self._wanted or block_side(canvas.height, canvas.width) == 1:
            return None
        whole = self._rows = np.empty((canvas.height, canvas.width), np.float32)

        def keep(top: int, rows: Floats) -> None:
            whole[top : top + len(rows)] = rows

        return keep

    def write(self, image: ImageScore, seen: ImageViews, level: float) -> ImageScore:
        """Keep the map and the reconstruction of an image; its result stays as it is."""
        decoded = seen.decoded
        if self._wanted:
            whole = seen.anomaly_map if self._rows is None else self._rows
            self.maps.append(_resized(whole, decoded.shape))
        if self._drawn:
            self.found.append(_reconstruction(seen.x_hat, decoded))
        return image

    def skip(self, image: ImageFile) -> None:
        """Keep the place of an image that could not be read; there all values are unknown."""
        size = image.size if isinstance(image, HeldImage) else None
        self.maps.append(None if size is None else np.full(size, np.nan, np.float32))
        if not isinstance(image, HeldImage) or size is None:
            self.found.append(None)
            return
        shape = size if image.samples == 1 else (*size, image.samples)
        unknown = np.nan if image.dtype.kind == "f" else 0
        self.found.append(np.full(shape, unknown, image.dtype))


def _resized(values: Floats, size: tuple[int, int]) -> Floats:
    """Resize a map (h, w) to (height, width), as the files of maps are."""
    height, width = values.shape
    rows = Rows(lambda top, end: values[top:end], (height, width), size)
    return np.concatenate([strip for _, strip in rows.strips()]).astype(np.float32, copy=False)


def _reconstruction(x_hat: Floats, decoded: Decoded) -> NDArray[Any]:
    """Return a reconstruction (c, h, w) in the size, colours, type and levels of its image."""
    low, high = decoded.canvas.window or (0.0, 255.0)
    image = decoded.image
    bands = [_resized(np.ascontiguousarray(band), decoded.shape) for band in x_hat]
    levels: Floats = np.stack(bands, 2)
    levels = ((levels + 1) / 2 * (high - low) + low).astype(np.float32)
    if not isinstance(image, HeldImage):
        levels = levels if levels.shape[2] > 1 else levels[..., 0]
        return levels if decoded.canvas.window else levels.round().clip(0, 255).astype(np.uint8)
    if image.samples > 1:
        levels = np.broadcast_to(levels, (*levels.shape[:2], image.samples))
    else:
        levels = (levels @ _GREY).astype(np.float32) if levels.shape[2] == 3 else levels[..., 0]
    return _as_type(levels, image, decoded)


def _as_type(levels: Floats, image: HeldImage, decoded: Decoded) -> NDArray[Any]:
    dtype = image.dtype
    if dtype == np.bool_:
        return levels > 127.5
    if dtype.kind in "iu":
        if dtype == np.uint16 and decoded.canvas.window is None:
            levels = levels * np.float32(257)  # colours that were reduced to 8 bits
        limits = np.iinfo(dtype)
        return levels.round().clip(limits.min, limits.max).astype(dtype)
    if not isinstance(image.content, Image.Image):  # whose floats may be in any unit
        levels = levels.clip(0, 1)
    return levels.astype(dtype)
