"""The rows of a result file: one for each image by rank, then one for each skipped file."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import NamedTuple

from anoscan.core.results import ImageScore, ScoreReport, Skipped


class Row(NamedTuple):
    """One image; a value that does not exist is None. The fields are the columns of tables.

    `page` is the number of the page in a file of several images. `nearest_term` names the term that
    decided the score. The region is the worst one, in pixels of the image as stored. `verdict` is
    'normal', 'anomalous', or 'skipped' for a file that could not be read, with its `reason`.
    """

    rank: int | None
    path: str
    page: int | None
    score: float | None
    p_value: float | None
    q_value: float | None
    verdict: str
    nearest_term: str | None
    mismatch: str | None
    region_x: int | None
    region_y: int | None
    region_width: int | None
    region_height: int | None
    region_score: float | None
    reason: str | None


COLUMNS = Row._fields


@dataclass(frozen=True)
class Results:
    """Everything that a result file is made of.

    Parameters
    ----------
    report : ScoreReport
        All images, ranked.
    pages : mapping of str to int
        Number of the page of each path that names one.
    weights : mapping of str to float
        How much each term counts in the score, by its name.
    sizes : mapping of str to (int, int)
        Width and height of each image as stored, by path; empty where no format needs them.
    pictures : mapping of str to bytes
        JPEG of each image that has one, by path.
    plain : bool
        Whether all paths are ASCII.
    """

    report: ScoreReport
    pages: Mapping[str, int]
    weights: Mapping[str, float]
    sizes: Mapping[str, tuple[int, int]]
    pictures: Mapping[str, bytes]
    plain: bool

    def rows(self) -> Iterator[Row]:
        """Yield the rows of the images by rank, then those of the skipped files."""
        for image in self.report.images:
            yield self.row(image)
        for item in self.report.skipped:
            yield self.skipped(item)

    def row(self, image: ImageScore) -> Row:
        """Return the row of an image."""
        return row_of(image, self.pages, self.weights)

    def skipped(self, item: Skipped) -> Row:
        """Return the row of a file that could not be read."""
        return row_of(item, self.pages, self.weights)


def row_of(
    result: ImageScore | Skipped, pages: Mapping[str, int], weights: Mapping[str, float]
) -> Row:
    """Return the row of an image, or of a file that could not be read; see `Results`."""
    page = pages.get(result.path)
    if isinstance(result, Skipped):
        known = {"path": result.path, "page": page, "reason": result.reason}
        return Row(**dict.fromkeys(COLUMNS) | known | {"verdict": "skipped"})  # type: ignore[arg-type]
    worst = result.regions[0] if result.regions else None
    return Row(
        rank=result.rank,
        path=result.path,
        page=page,
        score=result.score,
        p_value=result.p_value,
        q_value=result.q_value,
        verdict=result.verdict,
        nearest_term=_deciding(result, weights),
        mismatch="; ".join(result.mismatch) if result.mismatch else None,
        region_x=None if worst is None else worst.x,
        region_y=None if worst is None else worst.y,
        region_width=None if worst is None else worst.width,
        region_height=None if worst is None else worst.height,
        region_score=None if worst is None else worst.score,
        reason=None,
    )


def _deciding(image: ImageScore, weights: Mapping[str, float]) -> str | None:
    """Return the counted term with the highest weighted value, which decides the score most."""
    counted = [term for term in image.terms if weights.get(term, 0) > 0]
    return max(counted, key=lambda t: weights[t] * image.terms[t], default=None)
