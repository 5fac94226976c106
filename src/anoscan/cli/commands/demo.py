"""The command ``anoscan demo``: train, score and evaluate on scanned digits from scikit-learn.

There are 1,797 scans of 8x8 pixels. Digits 1 to 9 are normal; a fifth of them are queries, with the
anomalous digit 0. On so few small images PCA is strong, and the report always shows its AUROC.
"""

from __future__ import annotations

import csv
import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from anoscan.cli.options import (
    DEMO_ROWS,
    OUTPUT,
    Device,
    Json,
    Precision,
    Quiet,
    Workers,
    first_images,
    option,
    output_of,
)
from anoscan.core.errors import InputError, TrainingInterrupted

if TYPE_CHECKING:
    import numpy as np

    from anoscan.core.progress import OnProgress
    from anoscan.core.results import DemoReport
    from anoscan.detector import Detector


NAME = "anoscan-demo"
ODD_DIGIT = 0
QUERIES_OF_NORMALS = 0.2
SHEET_ROWS = 6
IMAGES_SHOWN = 48_000


@dataclass(frozen=True)
class Folders:
    """Files and folders that the demo writes."""

    normal: Path
    queries: Path
    labels: Path
    residuals: Path
    sheet: Path
    model: Path

    @classmethod
    def under(cls, output: Path) -> Folders:
        """Return the paths under an output folder."""
        return cls(
            output / "normal",
            output / "queries",
            output / "queries" / "labels.csv",
            output / "residuals",
            output / "sheet.png",
            output / "model.safetensors",
        )


def run(
    output: Path, *, device: str, precision: str, workers: int | None, on_progress: OnProgress
) -> DemoReport:
    """Write the images, train, score, evaluate, and draw the pictures.

    Raises
    ------
    InputError
        When `output` exists and is neither empty nor the folder of a demo.
    """
    from anoscan.core.results import DemoReport
    from anoscan.detector import Detector
    from anoscan.model import store
    from anoscan.model.training_record import Record

    folders = Folders.under(output)
    if output.exists() and not _is_ours(output, folders):
        raise InputError(
            f"{output} exists and is not a folder that a demo wrote.",
            hint="Give an empty or new folder with --output.",
        )
    _write_images(folders)
    folders.model.unlink(missing_ok=True)  # the model of an earlier demo need not be kept
    try:
        detector = Detector.train(
            folders.normal,
            name=NAME,
            path=folders.model,
            force=True,
            device=device,
            precision=precision,
            workers=workers,
            on_progress=on_progress,
            images_shown=IMAGES_SHOWN,
            rotation_images_shown=IMAGES_SHOWN,  # more would take longer, and add nothing here
        )
    except TrainingInterrupted:
        store.checkpoint_path(NAME).unlink(missing_ok=True)
        Record(store.checkpoint_path(NAME)).clear()
        raise TrainingInterrupted(
            "the demo was stopped.", hint="anoscan demo starts it anew."
        ) from None
    if detector.report is None:
        raise RuntimeError("training gives a report")
    score = detector.score(folders.queries, residuals=folders.residuals, on_progress=on_progress)
    _write_sheet(detector, [Path(image.residual or "") for image in score.images], folders)
    return DemoReport(
        train=detector.report,
        score=score,
        eval=detector.evaluate(folders.labels, on_progress=on_progress),
        output=output.as_posix(),
    )


def _is_ours(output: Path, folders: Folders) -> bool:
    if not output.is_dir():
        return False
    return folders.queries.is_dir() or not any(output.iterdir())


def _write_images(folders: Folders) -> None:
    import numpy as np
    from sklearn.datasets import load_digits

    digits = load_digits()
    images = np.round(digits.images * (255 / 16)).astype(np.uint8)
    order = np.random.default_rng(0).permutation(len(images))
    normal = [row for row in order if digits.target[row] != ODD_DIGIT]
    odd = [row for row in order if digits.target[row] == ODD_DIGIT]
    held_back = int(len(normal) * QUERIES_OF_NORMALS)
    for folder in (folders.queries, folders.normal):
        folder.mkdir(parents=True, exist_ok=True)
    for row in normal[held_back:]:
        _save(images[row], folders.normal / _name(row, digits.target[row]))
    with folders.labels.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream)
        writer.writerow(["path", "label", "class"])
        for row in [*normal[:held_back], *odd]:
            digit = digits.target[row]
            name = _name(row, digit)
            _save(images[row], folders.queries / name)
            label = "anomaly" if digit == ODD_DIGIT else "normal"
            writer.writerow([name, label, digit])


def _name(row: int, digit: int) -> str:
    return f"scan{row:04d}-digit{digit}.png"


def _save(image: np.ndarray, path: Path) -> None:
    from PIL import Image

    Image.fromarray(image).save(path)


def _write_sheet(detector: Detector, drawn: list[Path], folders: Folders) -> None:
    """Draw the most anomalous queries above the least anomalous ones."""
    from PIL import Image

    from anoscan.report import pictures

    half = SHEET_ROWS // 2
    rows = [Image.open(path) for path in [*drawn[:half], *drawn[-half:]]]
    pictures.save_png(pictures.sheet(rows), folders.sheet)


def demo(
    folder: Annotated[
        Path,
        option(
            "--output",
            help="Write images and pictures there.",
            metavar="DIR",
            default="anoscan-demo",
            panel=OUTPUT,
        ),
    ] = Path("anoscan-demo"),
    device: Device = "auto",
    precision: Precision = "auto",
    workers: Workers = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Do the whole job offline, on scanned digits."""
    output = output_of(as_json, quiet)
    with output.progress() as on_progress:
        report = run(
            folder, device=device, precision=precision, workers=workers, on_progress=on_progress
        )
    rows = None if as_json else DEMO_ROWS
    output.emit(dataclasses.replace(report, score=first_images(report.score, None, rows)))
