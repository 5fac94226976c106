"""Measure how large a report of thousands of images is, and how fast a browser filters it.

    python -m benchmarks.report --images 5000

The images are 150 different crops of textures, which hardly compress. Their reconstructions and
maps are made up, because they do not change what a browser has to do. This benchmark needs
Chromium and the dev extra.
"""

from __future__ import annotations

import argparse
import json
import resource
import shutil
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from skimage import data

from anoscan.core.results import ImageScore, Region
from anoscan.images.decode import ImageRule, decode
from anoscan.images.files import ImageFile
from anoscan.report.html_page import Background, HtmlReport
from anoscan.report.views import ImageViews

SIDE, CROPS = 300, 150
RULE = ImageRule(size=64, channels=1, window=None)
RUNS = 3


def write(path: Path, count: int, seed: int = 0) -> dict[str, float]:
    """Write a report of `count` crops.

    Returns
    -------
    dict
        Size of the file in megabytes, milliseconds for each image, and by how many megabytes the
        peak memory of this process grew.
    """
    before, started = _peak(), time.monotonic()
    rows = []
    with tempfile.TemporaryDirectory() as folder, HtmlReport(path, count) as page:
        for image, seen in _images(count, Path(folder), seed):
            page.add(image, seen)
            rows.append(image)
        held_out = np.random.default_rng(seed).normal(0, 1, 500)
        page.write(_document(rows), Background({}, held_out))
    return {
        "megabytes": path.stat().st_size / 1e6,
        "milliseconds_per_image": 1000 * (time.monotonic() - started) / count,
        "peak_megabytes_more": _peak() - before,
    }


def _peak() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3


def _images(count: int, folder: Path, seed: int) -> Iterator[tuple[ImageScore, ImageViews]]:
    rng = np.random.default_rng(seed)
    decoded = [decode(file, RULE) for file in _crops(folder, rng)]
    for index in range(count):
        path = f"line{index % 7}/day{index % 30:02d}/image{index:05d}.png"
        score = float(rng.standard_gamma(2) - 2)
        image = ImageScore(
            rank=None,
            path=path,
            score=score,
            p_value=0.5,
            q_value=None,
            verdict="anomalous" if score > 2 else "normal",
            terms={"density": score, "local": score, "pixel": score},
            regions=(Region(x=10, y=10, width=30, height=20, score=1.0, area=20, p_value=0.01),),
            residual=None,
        )
        source = decoded[index % CROPS]
        x = source.pixels
        yield image, ImageViews(source, x[:, ::-1], np.abs(x[0] - x.mean()), 1.0, RULE)


def _crops(folder: Path, rng: np.random.Generator) -> Iterator[ImageFile]:
    sources = [data.brick(), data.grass(), data.gravel()]
    for index in range(CROPS):
        source = sources[index % len(sources)]
        top, left = rng.integers(0, np.array(source.shape) - SIDE + 1)
        file = folder / f"{index}.png"
        Image.fromarray(source[top : top + SIDE, left : left + SIDE]).save(file)
        yield ImageFile(str(file), file, file.name)


def _document(scored: list[ImageScore]) -> dict[str, Any]:
    ordered = sorted(scored, key=lambda image: -image.score)
    rows = [vars(image) | {"rank": rank} for rank, image in enumerate(ordered, start=1)]
    odd = sum(image.verdict == "anomalous" for image in scored)
    threshold = {
        "score": 2.0,
        "effective_rate": 0.01,
        "calibration_images": 500,
        "warning": None,
    }
    return {
        "schema": "anoscan.score/1",
        "model": {"name": "textures"},
        "threshold": threshold,
        "counts": {"scored": len(rows), "anomalous": odd, "skipped": 0},
        "images": rows,
        "skipped": [],
    }


_OPEN = "() => document.querySelector('.card img')?.naturalWidth > 0"
# The time ends with the next frame, as somebody who types in the filter would see it.
_FILTER = """async (text) => {
  const start = performance.now(), name = document.querySelector('#name');
  name.value = text;
  name.dispatchEvent(new Event('input', { bubbles: true }));
  const pictures = [...document.querySelectorAll('.card img')].slice(0, 8);
  await Promise.all(pictures.map((picture) => picture.decode()));
  await new Promise((done) => requestAnimationFrame(() => setTimeout(done)));
  return performance.now() - start;
}"""


def browse(path: Path) -> dict[str, float]:
    """Measure a report in Chromium; returns medians of `RUNS` runs in seconds.

    ``open`` ends when the first picture is shown, ``loaded`` when the page is loaded, and
    ``filter`` is the time to filter the images by name.
    """
    from playwright.sync_api import sync_playwright

    found: dict[str, list[float]] = {"open": [], "loaded": [], "filter": []}
    arguments = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=shutil.which("chromium") or shutil.which("google-chrome"),
            args=arguments,
        )
        for _ in range(RUNS):
            page = browser.new_page()
            started = time.monotonic()
            page.goto(path.as_uri(), wait_until="commit")
            page.wait_for_function(_OPEN)
            found["open"].append(time.monotonic() - started)
            page.wait_for_load_state("load")
            found["loaded"].append(time.monotonic() - started)
            for text in ("image01", "day07", "nothing", ""):
                found["filter"].append(page.evaluate(_FILTER, text) / 1000)
            page.close()
        browser.close()
    return {name: statistics.median(values) for name, values in found.items()}


def main() -> None:
    """Measure, and print one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=5000)
    parser.add_argument("--keep", type=Path, help="where to leave the report")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        path = arguments.keep or Path(folder) / "report.html"
        figures = write(path, arguments.images)
        print(json.dumps(figures | browse(path.absolute()), indent=2))


if __name__ == "__main__":
    main()
