"""Measure how many images a second are decoded, in threads and in processes of their own.

``python -m benchmarks.decoding`` decodes the same files both ways in turns, and keeps the medians.
Threads share one process, as before files were isolated from it.
"""

from __future__ import annotations

import argparse
import os
import resource
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from unittest import mock

import numpy as np
import tifffile
from PIL import Image

from anoscan.images import pool
from anoscan.images.decode import ImageRule, decode_all
from anoscan.images.files import find
from benchmarks import cells, markdown
from benchmarks.cells import Cell

ROUNDS = 5
Pixels = np.ndarray


def _png(pixels: Pixels, path: Path) -> None:
    Image.fromarray(pixels).save(path.with_suffix(".png"))


def _jpeg(pixels: Pixels, path: Path) -> None:
    Image.fromarray(pixels).save(path.with_suffix(".jpg"), quality=90)


def _tiff(pixels: Pixels, path: Path) -> None:
    tifffile.imwrite(path.with_suffix(".tif"), pixels.astype(np.uint16) * 257)


# Of each set: how many images, their shape, what writes them, and the side that networks see.
SETS: dict[str, tuple[int, tuple[int, ...], Callable[[Pixels, Path], None], int]] = {
    "28x28 PNG": (10_000, (28, 28), _png, 28),
    "640x640 RGB JPEG": (300, (640, 640, 3), _jpeg, 128),
    "1024x1024 16-bit TIFF": (60, (1024, 1024), _tiff, 128),
}


def write(name: str, folder: Path) -> None:
    """Write the images of a set: smooth patterns with noise."""
    count, shape, save, _ = SETS[name]
    rng = np.random.default_rng(0)
    y, x = np.mgrid[: shape[0], : shape[1]]
    for number in range(count):
        plain = 128 + 60 * np.sin(x / 9 + number) + 40 * np.cos(y / 7)
        plain = plain if len(shape) == 2 else np.repeat(plain[..., None], 3, 2)
        pixels = (plain + rng.normal(0, 8, shape)).clip(0, 255).astype(np.uint8)
        save(pixels, folder / f"{number:05}")


def measure(name: str, folder: Path, workers: int) -> dict[str, float]:
    """Decode a set in threads and in processes, in turns.

    Returns
    -------
    dict
        Medians of images a second: ``threads``, and ``processes`` once they have started.
    """
    files, side = find([folder]), SETS[name][3]
    deep = name.endswith("TIFF")
    rule = ImageRule(size=side, channels=1, window=(0, 65_535) if deep else None)

    def rate() -> float:
        start = time.monotonic()
        decoded = sum(1 for _ in decode_all(files, rule, workers=workers))
        return decoded / (time.monotonic() - start)

    rates: dict[str, list[float]] = {"threads": [], "processes": []}
    with mock.patch.object(pool, "_WORTH", 0.0):
        rate()  # the processes start here
    for _ in range(ROUNDS):
        with (
            mock.patch.object(pool, "_WORTH", float("inf")),
            mock.patch.object(pool, "is_plain", return_value=True),
        ):
            rates["threads"].append(rate())
        with mock.patch.object(pool, "_WORTH", 0.0):
            rates["processes"].append(rate())
    return {way: median(found) for way, found in rates.items()}


def table() -> str:
    """Lay out the kept results."""
    rows = [
        [row["cls"], f"{row['threads']:.0f}", f"{row['processes']:.0f}", f"{row['ratio']:.2f}"]
        for row in cells.load("decoding/*")
    ]
    titles = ["images", "in threads, a second", "in processes, a second", "processes / threads"]
    return markdown.table(titles, rows)


def main() -> None:
    """Measure all sets, keep the results, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--workers", type=int, default=min(8, os.cpu_count() or 1))
    workers = parser.parse_args().workers
    for name in SETS:
        with tempfile.TemporaryDirectory() as folder:
            write(name, Path(folder))
            found = measure(name, Path(folder), workers)
        found["ratio"] = found["processes"] / found["threads"]
        found["peak_gb"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        settings = (("workers", workers),)
        cells.keep(Cell("decoding", name, 0, "anoscan", settings), found, cells.command())
    print(table())


if __name__ == "__main__":
    main()
