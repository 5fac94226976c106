"""Write results as an Excel workbook with small pictures (XlsxWriter, the extra ``excel``)."""

from __future__ import annotations

import heapq
import io
import itertools
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from PIL import Image

import anoscan
from anoscan.core.files import defused, encodable, replacing, temporary_folder
from anoscan.core.results import ImageScore
from anoscan.report import pictures
from anoscan.report.rows import COLUMNS, Results, Row
from anoscan.report.views import ImageViews

if TYPE_CHECKING:
    from xlsxwriter.workbook import Workbook
    from xlsxwriter.worksheet import Worksheet

MOST_PICTURES = 2_000  # spreadsheet programs become slow with more
MOST_ROWS = 1_048_575  # below the header; Excel reads no more in one sheet
_SIDE = 96  # pixels of a small picture; two of them are beside each other
_RANK = 48  # pixels at the left of the pictures, for the rank
_WIDTHS = {  # in characters
    "path": 44,
    "page": 6,
    "verdict": 11,
    "nearest_term": 17,
    "mismatch": 30,
    "region_width": 13,
    "region_height": 13,
    "region_score": 13,
    "reason": 44,
}
_WIDTH = 10
_VERDICTS: dict[str, dict[str, Any]] = {
    "anomalous": {"bg_color": "#FFC7CE", "font_color": "#9C0006", "bold": True},
    "normal": {"bg_color": "#C6EFCE", "font_color": "#006100"},
    "skipped": {"bg_color": "#FFEB9C", "font_color": "#7F6000"},
}
_DIGITS = {"score": "0.000", "p_value": "0.0000", "q_value": "0.0000", "region_score": "0.00"}


class SmallPictures:
    """Keeps small pictures of the `MOST_PICTURES` most anomalous images, and not of the others."""

    def __init__(self) -> None:
        self._order = itertools.count()
        self._kept: list[tuple[float, int, str, bytes]] = []

    def add(self, image: ImageScore, seen: ImageViews) -> None:
        """Keep the picture of an image that was just scored, if it is among the most anomalous."""
        if len(self._kept) == MOST_PICTURES:
            if image.score <= self._kept[0][0]:
                return
            heapq.heappop(self._kept)
        kept = (image.score, -next(self._order), image.path, _jpeg(image, seen))
        heapq.heappush(self._kept, kept)

    def by_path(self) -> dict[str, bytes]:
        """Return the pictures as JPEG, by the path of their image."""
        return {path: data for _, _, path, data in self._kept}


def _jpeg(image: ImageScore, seen: ImageViews) -> bytes:
    """Draw the image beside its map with its regions."""
    views = seen.views(_SIDE, image.regions)
    query = pictures.enlarged(views.query, _SIDE)
    pair = pictures.row([query.resize(views.anomaly_map.size), views.anomaly_map])
    pair.thumbnail((2 * _SIDE + 4, _SIDE), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    pair.save(buffer, "JPEG", quality=85)
    return buffer.getvalue()


def write(results: Results, path: Path) -> None:
    """Write the workbook: the sheet ``results`` with a row an image, and the sheet ``run``.

    Raises
    ------
    InputError
        When the file cannot be written.
    """
    from xlsxwriter import Workbook
    from xlsxwriter.exceptions import FileCreateError

    with replacing(path) as stream, temporary_folder(path.parent) as folder:
        # In this mode each row goes to a temporary file when the next one begins.
        target = _Target(stream)
        book = Workbook(target, {"constant_memory": True, "tmpdir": str(folder)})
        rows = results.rows()
        for number in itertools.count(1):
            sheet = book.add_worksheet("results" if number == 1 else f"results {number}")
            _Sheet(book, sheet, results.pictures).fill(itertools.islice(rows, MOST_ROWS))
            following = next(rows, None)
            if following is None:
                break
            rows = itertools.chain([following], rows)
        _describe(book, results)
        try:
            book.close()
        except FileCreateError as error:
            raise error.args[0] from error
        if target.failure is not None:
            raise target.failure


class _Target:
    """A stream that keeps its first failure to itself.

    A ZIP file that met one would write again, and fail again, whenever Python removes it.
    """

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream
        self.failure: Exception | None = None

    def write(self, data: bytes) -> int:
        if self.failure is None:
            try:
                self._stream.write(data)
            except (OSError, ValueError) as error:  # ValueError: the stream is closed by now
                self.failure = error
        return len(data)

    def flush(self) -> None:
        pass


class _Sheet:
    """A sheet with a frozen header, to which rows are written in their order."""

    def __init__(self, book: Workbook, sheet: Worksheet, drawn: Mapping[str, bytes]) -> None:
        self._sheet, self._drawn = sheet, drawn
        middle: dict[str, Any] = {"valign": "vcenter"}
        self._plain = book.add_format(middle | {"align": "left"})
        text = middle | {"text_wrap": True}
        self._text = book.add_format(text)
        # A name that begins like a formula is text, and stays text when its cell is edited.
        self._quoted = book.add_format(text | {"quote_prefix": True})
        self._numbers = {
            name: book.add_format(middle | {"num_format": form}) for name, form in _DIGITS.items()
        }
        self._verdicts = {name: book.add_format(middle | f) for name, f in _VERDICTS.items()}
        header = book.add_format({"bold": True, "bottom": 1, "valign": "top"})
        for place, name in enumerate(COLUMNS):
            sheet.set_column(place, place, _WIDTHS.get(name, _WIDTH))
        sheet.set_column_pixels(0, 0, _RANK + 2 * _SIDE + 12)
        sheet.freeze_panes(1, 0)
        sheet.set_landscape()
        sheet.fit_to_pages(1, 0)  # printed: as wide as a page, and as long as it is
        sheet.repeat_rows(0)
        for place, name in enumerate(COLUMNS):
            sheet.write_string(0, place, name, header)

    def fill(self, rows: Iterator[Row]) -> None:
        last = 0
        for last, row in enumerate(rows, start=1):
            drawn = self._drawn.get(row.path)
            if drawn is not None:
                self._sheet.set_row_pixels(last, _SIDE + 6)
                options = {
                    "image_data": io.BytesIO(drawn),
                    "x_offset": _RANK,
                    "y_offset": 3,
                    "object_position": 1,  # the picture moves when rows are sorted
                    "description": encodable(row.path),
                }
                self._sheet.insert_image(last, 0, f"{last}.jpg", options)
            for place, (name, value) in enumerate(zip(COLUMNS, row, strict=True)):
                self._cell(last, place, name, value)
        self._sheet.autofilter(0, 0, last, len(COLUMNS) - 1)

    def _cell(self, row: int, place: int, name: str, value: str | float | None) -> None:
        if isinstance(value, str):
            style = self._text if defused(value) == value else self._quoted
            style = self._verdicts.get(value, style) if name == "verdict" else style
            self._sheet.write_string(row, place, encodable(value), style)
        elif value is not None and math.isfinite(value):
            self._sheet.write_number(row, place, value, self._numbers.get(name, self._plain))


def _describe(book: Workbook, results: Results) -> None:
    """Add the sheet that says which model judged the images, and at which threshold."""
    report, sheet = results.report, book.add_worksheet("run")
    threshold = report.threshold
    facts: dict[str, str | float | None] = {
        "model": report.model.name,
        "SHA-256": report.model.sha256,
        "threshold": threshold.score,
        "false-alarm rate": threshold.effective_rate,
        "calibration images": threshold.calibration_images,
        **report.counts,
        "warning": threshold.warning,
        "anoscan": anoscan.__version__,
    }
    facts |= {f"rule {alarm.rule}": alarm.detail for alarm in report.alarms}
    sheet.set_column(0, 0, 22)
    sheet.set_column(1, 1, 70)
    left = book.add_format({"align": "left"})
    for row, (name, value) in enumerate(facts.items()):
        sheet.write_string(row, 0, name)
        if isinstance(value, str):
            sheet.write_string(row, 1, encodable(value))
        elif value is not None and math.isfinite(value):
            sheet.write_number(row, 1, value, left)
