"""Find and locate defects planted in whole solar cells: ``python -m benchmarks.planted``.

Cells are aligned, as most parts in industry are, and have 300x300 pixels. A planted defect is
either a small one (`benchmarks.defects`) or an ellipse with diameters of 24 to 120 pixels. The
ellipse is darker, out of focus, or taken from another cell that was rotated by 90 degrees. The
folder is laid out like MVTec AD, as users have it. PCA is measured for comparison: its residual
scores images and pixels.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image
from scipy import ndimage
from sklearn.decomposition import PCA

from anoscan.detector import Detector
from anoscan.evaluation.pixels import PixelScores, pixel_metrics
from benchmarks import cells, data, markdown
from benchmarks.cells import Cell
from benchmarks.defects import defective

SIDE = "300"
# Pixels a side that PCA sees, its components, and standard deviation of its smoothing in pixels.
PCA_SIDE, COMPONENTS, SMOOTHED = 128, 64, 4
RADII = (12, 60)  # pixels, smallest and largest

Pixels = npt.NDArray[np.uint8]
Mask = npt.NDArray[np.bool_]
LARGE: dict[str, Callable[[Pixels, Pixels, np.random.Generator], npt.NDArray[Any]]] = {
    "dark": lambda cell, other, rng: cell * rng.uniform(0.4, 0.75),
    "turned": lambda cell, other, rng: np.rot90(other),
    "soft": lambda cell, other, rng: ndimage.gaussian_filter(cell, rng.uniform(2, 5)),
}


def ellipse(shape: tuple[int, ...], rng: np.random.Generator) -> Mask:
    """Draw a filled ellipse at a random place of an image of `shape` (h, w), as a mask (h, w)."""
    rows, columns = np.indices(shape) - rng.uniform(0.2, 0.8, (2, 1, 1)) * shape[0]
    angle, (a, b) = rng.uniform(0, np.pi), rng.uniform(*RADII, 2)
    along = rows * np.cos(angle) + columns * np.sin(angle)
    across = columns * np.cos(angle) - rows * np.sin(angle)
    inside: Mask = np.hypot(along / a, across / b) <= 1
    return inside


def lay_out(root: Path, seed: int) -> None:
    """Write a folder of cells: ``train/good``, ``test`` by kind of defect, and masks."""
    split = data.load("elpv", SIDE, seed=seed)
    rng = np.random.default_rng(seed)
    # The order is random, because neighbours in the set are cells of one module.
    normal = rng.permutation(split.test[~split.anomalous])
    half = len(normal) // 2
    data.write_folder(split.train, root / "train" / "good")
    data.write_folder(normal[:half], root / "test" / "good")
    others = rng.permutation(normal)
    for number, (cell, other) in enumerate(zip(normal[half:], others, strict=False)):
        small = defective(cell, rng, other)
        _save(root, small.kind, number, small.image, small.mask)
        kind = list(LARGE)[number % len(LARGE)]
        mask = ellipse(cell.shape, rng)
        _save(root, kind, number, np.where(mask, LARGE[kind](cell, other, rng), cell), mask)


def _save(
    root: Path, kind: str, number: int, image: npt.NDArray[Any], mask: npt.NDArray[Any]
) -> None:
    for folder, pixels, end in (("test", image, ""), ("ground_truth", mask * 255, "_mask")):
        path = root / folder / kind / f"{number:03}{end}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels.astype(np.uint8)).save(path)


def pca_maps(root: Path) -> dict[str, float]:
    """Measure pixel AUROC and AUPRO of PCA's squared residual, smoothed, on the test folder."""
    train = _read(sorted((root / "train").rglob("*.png")))
    paths = sorted((root / "test").rglob("*.png"))
    pca = PCA(COMPONENTS, svd_solver="randomized", random_state=0).fit(train)
    with PixelScores() as pixels:
        for path, row in zip(paths, _read(paths), strict=True):
            left = (row - pca.inverse_transform(pca.transform(row[None]))[0]) ** 2
            place = ndimage.gaussian_filter(left.reshape(PCA_SIDE, PCA_SIDE), SMOOTHED)
            truth = root / "ground_truth" / path.parent.name / f"{path.stem}_mask.png"
            mask = np.asarray(Image.open(truth)) > 0 if truth.exists() else None
            size = (int(SIDE), int(SIDE))
            grown = Image.fromarray(place.astype(np.float32)).resize(size)
            pixels.add(np.asarray(grown), np.zeros(size, np.bool_) if mask is None else mask)
        metrics = pixel_metrics([pixels])
    return {"auroc": metrics.auroc or 0.0, "aupro": metrics.aupro or 0.0}


def _read(paths: list[Path]) -> npt.NDArray[np.float32]:
    size = (PCA_SIDE, PCA_SIDE)
    images = (Image.open(path).resize(size, Image.Resampling.BILINEAR) for path in paths)
    return np.stack([np.asarray(image, np.float32).ravel() / 255 for image in images])


def run(seed: int, settings: dict[str, Any], kept: Path | None) -> dict[str, Any]:
    """Train on the cells of one split, and measure AUROC of images and pixels, and AUPRO.

    Parameters
    ----------
    seed : int
        Seed of the split, of the defects and of the training.
    settings : dict
        Settings of the training.
    kept : Path or None
        File to keep the model in.
    """
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch) / "cells"
        lay_out(root, seed)
        start = time.process_time()
        path = kept or Path(scratch) / "model.safetensors"
        detector = Detector.train(root, path=path, seed=seed, workers=1, **settings)
        seconds = round(time.process_time() - start)
        report = detector.evaluate(folder=root)
        if report.pixel is None:
            raise RuntimeError("the folder has masks")
        kinds = {
            str(each.name): {
                "auroc": each.auroc,
                "pixel_auroc": each.pixel.auroc if each.pixel else None,
                "aupro": each.pixel.aupro if each.pixel else None,
            }
            for each in report.classes or ()
            if each.anomalous
        }
        return {
            "auroc": report.auroc,
            "auroc_of_baselines": {name: row["auroc"] for name, row in report.baselines.items()},
            "pixel": {"auroc": report.pixel.auroc, "aupro": report.pixel.aupro},
            "pixel_of_pca": pca_maps(root),
            "kinds": kinds,
            "cpu_seconds": seconds,
        }


def tables() -> str:
    """Lay out the kept results with those of the baselines, and by kind of defect."""
    kept = cells.load("planted/*")
    whole = [row for result in kept for row in _whole(result)]
    kinds = [
        [str(result["seed"]), kind, *map(_figure, (of["auroc"], of["pixel_auroc"], of["aupro"]))]
        for result in kept
        for kind, of in result["kinds"].items()
    ]
    figures = ["images, AUROC", "pixels, AUROC", "AUPRO"]
    return markdown.sections(
        {
            "All": (["seed", "method", *figures], whole),
            "By what was planted": (["seed", "planted", *figures], kinds),
        }
    )


def _whole(result: dict[str, Any]) -> list[list[str]]:
    images = {"anoscan": result["auroc"]} | result["auroc_of_baselines"]
    pixels = {"anoscan": result["pixel"], "pca": result["pixel_of_pca"]}
    return [
        [
            str(result["seed"]),
            name.replace("_", " "),
            _figure(auroc),
            *(_figure(pixels.get(name, {}).get(metric)) for metric in ("auroc", "aupro")),
        ]
        for name, auroc in images.items()
    ]


def _figure(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def main() -> None:
    """Measure one split, keep the figures, and print them as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--images-shown", type=int)
    parser.add_argument("--model", type=Path, help="file to keep the model in")
    given = parser.parse_args()
    settings = {"images_shown": given.images_shown} if given.images_shown else {}
    cell = Cell("planted", "elpv", given.seed, "anoscan", tuple(settings.items()))
    found = run(given.seed, settings, given.model)
    json.dump(cells.keep(cell, found, cells.command()), sys.stdout, indent=1)


if __name__ == "__main__":
    main()
