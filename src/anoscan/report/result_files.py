"""Write the result of a scoring to files, in the format that their extension names."""

from __future__ import annotations

import codecs
import csv
import itertools
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import anoscan
from anoscan.core.errors import AnoscanError, UsageError
from anoscan.core.files import check_writable, defused, encodable, replacing
from anoscan.core.results import (
    IMAGE_SCHEMA,
    ImageScore,
    ScoreReport,
    json_parts,
    to_json,
)
from anoscan.images.files import ImageFile
from anoscan.report import spreadsheet
from anoscan.report.rows import COLUMNS, Results, Row
from anoscan.report.spreadsheet import SmallPictures
from anoscan.report.views import ImageViews, OnImage

_CHUNK = 65_536  # rows of a Parquet row group


@dataclass(frozen=True)
class Format:
    """A format of result files: its writer, the package that it needs, and the extra with that."""

    write: Callable[[Results, Path], None]
    package: str | None = None
    extra: str | None = None


def _csv(results: Results, path: Path) -> None:
    # Excel takes a CSV for UTF-8 only when it begins with a byte order mark.
    encoding = "utf-8" if results.plain else "utf-8-sig"
    with replacing(path) as stream:
        writer = csv.writer(codecs.getwriter(encoding)(stream), lineterminator="\n")
        writer.writerow(COLUMNS)
        writer.writerows(map(_csv_cell, row) for row in results.rows())


def _csv_cell(value: str | float | None) -> str:
    if value is None:
        return ""
    return defused(encodable(value)) if isinstance(value, str) else repr(value)


def _json(results: Results, path: Path) -> None:
    with replacing(path) as stream:
        for part in json_parts(results.report):
            stream.write(part.encode("ascii"))


def _jsonl(results: Results, path: Path) -> None:
    """Write a line for each row; those of images also have all fields of ``score --jsonl``."""
    head = {"schema": IMAGE_SCHEMA}
    with replacing(path) as stream:
        for image in results.report.images:
            row = results.row(image)._asdict()
            stream.write(_compact(head | to_json(row) | to_json(image)) + b"\n")
        for item in results.report.skipped:
            stream.write(_compact(head | to_json(results.skipped(item)._asdict())) + b"\n")


def _parquet(results: Results, path: Path) -> None:
    import pyarrow as pa
    from pyarrow.parquet import ParquetWriter

    report = results.report
    run = {
        "model": report.model,
        "threshold": report.threshold,
        "counts": report.counts,
        "anoscan_version": anoscan.__version__,
    }
    schema = pa.schema(
        [(name, _parquet_type(pa, name)) for name in COLUMNS],
        metadata={"anoscan": _compact(to_json(run))},
    )
    rows = results.rows()
    with replacing(path) as stream, ParquetWriter(stream, schema) as writer:
        while chunk := list(itertools.islice(rows, _CHUNK)):
            cells = [map(_parquet_cell, column) for column in zip(*chunk, strict=True)]
            arrays = [pa.array(c, f.type) for c, f in zip(cells, schema, strict=True)]
            writer.write_table(pa.Table.from_arrays(arrays, schema=schema))


def _parquet_type(pa: Any, name: str) -> Any:
    annotation = str(Row.__annotations__[name])
    known = {"int": pa.int64(), "float": pa.float64(), "str": pa.string()}
    return next(kind for word, kind in known.items() if word in annotation)


def _parquet_cell(value: str | float | None) -> str | float | None:
    return encodable(value) if isinstance(value, str) else value


def _coco(results: Results, path: Path) -> None:
    """Write the regions as detections of COCO; boxes are in pixels of the image as stored."""
    report = results.report
    info = {
        "description": "anomalous regions found by anoscan",
        "version": anoscan.__version__,
        "model": report.model.name,
        "sha256": report.model.sha256,
    }
    category = {"id": 1, "name": "anomaly", "supercategory": "anomaly"}
    head = {"info": info, "licenses": [], "categories": [category]}
    lists = {
        "images": (_coco_image(results, image) for image in report.images),
        "annotations": _coco_regions(report.images),
        "skipped": (to_json(item) for item in report.skipped),
    }
    with replacing(path) as stream:
        stream.write(_compact(to_json(head))[:-1])
        for name, items in lists.items():
            stream.write(f',\n"{name}":['.encode("ascii"))
            for number, item in enumerate(items):
                stream.write((b",\n" if number else b"\n") + _compact(item))
            stream.write(b"]")
        stream.write(b"}\n")


def _coco_image(results: Results, image: ImageScore) -> dict[str, Any]:
    width, height = results.sizes[image.path]
    named = {"id": image.rank, "file_name": image.path, "width": width, "height": height}
    judged = {"score": image.score, "p_value": image.p_value, "verdict": image.verdict}
    return {**named, **to_json(judged)}


def _coco_regions(images: Sequence[ImageScore]) -> Iterator[dict[str, Any]]:
    number = 0
    for image in images:
        for region in image.regions:
            number += 1
            yield {
                "id": number,
                "image_id": image.rank,
                "category_id": 1,
                "bbox": [region.x, region.y, region.width, region.height],
                "area": region.area,
                "segmentation": [],
                "iscrowd": 0,
                "score": to_json(region.score),
                "attributes": {"p_value": region.p_value, "below_level": region.below_level},
            }


def _compact(value: Any) -> bytes:
    return json.dumps(value, allow_nan=False, ensure_ascii=True).encode("ascii")


# The first extension that a name ends with counts, so the longer one is before the shorter one.
FORMATS = {
    ".coco.json": Format(_coco),
    ".csv": Format(_csv),
    ".json": Format(_json),
    ".jsonl": Format(_jsonl),
    ".xlsx": Format(spreadsheet.write, "xlsxwriter", "excel"),
    ".parquet": Format(_parquet, "pyarrow", "parquet"),
}
PAGES = (".html", ".htm")  # what `html_page` writes


def is_page(path: Path) -> bool:
    """Say whether a file is to be the HTML page."""
    return path.suffix.lower() in PAGES


def format_of(path: Path) -> Format | None:
    """Return the format that the extension of a file names, or None."""
    name = path.name.lower()
    return next((form for end, form in FORMATS.items() if name.endswith(end)), None)


def check(path: Path, option: str = "--output") -> None:
    """Check before a long job that a result can be written to a file; leave nothing behind.

    Raises
    ------
    UsageError
        When the extension is unknown, its package is missing, or the file cannot be written.
    """
    form = format_of(path)
    if form is None and not is_page(path):
        known = ", ".join([*FORMATS, PAGES[0]])
        raise UsageError(f"{option} {path}: its name must end with one of {known}.")
    if form is not None and form.package is not None and find_spec(form.package) is None:
        raise UsageError(
            f"{option} {path}: {form.package} is not installed.",
            hint=f"Install it: python -m pip install 'anoscan[{form.extra}]'",
        )
    check_writable(path, option)


class ResultFiles:
    """Collects what result files need while images are scored, and then writes the files.

    Parameters
    ----------
    paths : sequence of Path
        Files to write. The extension of each names its format; see `check`.
    files : sequence of ImageFile
        The images that are scored.
    """

    def __init__(self, paths: Sequence[Path], files: Sequence[ImageFile]) -> None:
        self.paths = tuple(dict.fromkeys(paths))
        formats = {format_of(path) for path in self.paths}
        self._pages = {f.path: f.page for f in files if f.page is not None} if paths else {}
        self._plain = all(file.path.isascii() for file in files)
        self._sizes: dict[str, tuple[int, int]] = {}
        self._sized = FORMATS[".coco.json"] in formats
        self._pictures = SmallPictures() if FORMATS[".xlsx"] in formats else None

    @property
    def on_image(self) -> OnImage | None:
        """Function to call with every image; None where no format needs more than results."""
        return self._add if self._sized or self._pictures is not None else None

    def _add(self, image: ImageScore, seen: ImageViews) -> None:
        if self._sized:
            self._sizes[image.path] = (seen.decoded.width, seen.decoded.height)
        if self._pictures is not None:
            self._pictures.add(image, seen)

    def write(self, report: ScoreReport, weights: Mapping[str, float]) -> None:
        """Write all files; where one cannot be written, the others are written all the same.

        `weights` says how much each term counts in the score of the report.

        Raises
        ------
        InputError
            For the first file that cannot be written.
        """
        drawn = self._pictures.by_path() if self._pictures is not None else {}
        results = Results(report, self._pages, weights, self._sizes, drawn, self._plain)
        failures = []
        for path in self.paths:
            form = format_of(path)
            try:
                if form is not None:
                    form.write(results, path)
            except AnoscanError as error:
                failures.append(error)
        if failures:
            raise failures[0]
