"""Measure how well maps of patch models find what is foreign in three textures.

The left columns of a texture are the training images, which are learned in patches. The other
columns are cut into three test images. Discs of the other two textures, or small defects, are
planted in them. With ``--images-shown N`` there is no rotation stage.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import skimage.data
from PIL import Image

from anoscan.core.config import NO_BACKBONE
from anoscan.detector import Detector
from anoscan.evaluation.pixels import PixelScores, pixel_metrics
from anoscan.report.map_files import MapFiles
from benchmarks import cells, markdown
from benchmarks.cells import Cell
from benchmarks.defects import defective

NAMES = ("brick", "grass", "gravel")
TRAIN_COLUMNS = 320  # of 512 columns
PIECES = (5, 4)  # parts down and across the training columns, so that some can be held out
TESTS = 3  # test images
DIAMETERS = (48, 64)  # pixels
DEFECTS = 3  # small defects in a test image
METRICS = ("auroc", "aupro")

Pixels = npt.NDArray[np.uint8]
Mask = npt.NDArray[np.bool_]
Planted = tuple[Pixels, Mask]


def texture(name: str) -> Pixels:
    """Load a texture, uint8 (512, 512), that scikit-image contains."""
    pixels: Pixels = np.asarray(getattr(skimage.data, name)(), np.uint8)
    return pixels


def foreign(image: Pixels, donors: Sequence[Pixels], rng: np.random.Generator) -> Planted:
    """Plant one disc of each donor in a copy of an image; returns the copy and its mask."""
    planted, mask = image.copy(), np.zeros(image.shape, np.bool_)
    height = image.shape[0] // len(donors)
    for number, (donor, diameter) in enumerate(zip(donors, DIAMETERS, strict=True)):
        rows, columns = np.indices((diameter, diameter)) - (diameter - 1) / 2
        disc = np.hypot(rows, columns) <= diameter / 2
        top = number * height + int(rng.integers(max(height - diameter, 0) + 1))
        left = int(rng.integers(image.shape[1] - diameter + 1))
        from_top = int(rng.integers(donor.shape[0] - diameter + 1))
        from_left = int(rng.integers(donor.shape[1] - diameter + 1))
        place = (slice(top, top + diameter), slice(left, left + diameter))
        cut = donor[from_top : from_top + diameter, from_left : from_left + diameter]
        planted[place][disc] = cut[disc]
        mask[place] |= disc
    return planted, mask


def faulty(image: Pixels, donor: Pixels, rng: np.random.Generator) -> Planted:
    """Plant `DEFECTS` small defects in a copy of an image; returns the copy and its mask."""
    mask = np.zeros(image.shape, np.bool_)
    for _ in range(DEFECTS):
        found = defective(image, rng, donor)
        image, mask = found.image, mask | found.mask
    return image, mask


def tests(name: str, seed: int) -> dict[str, list[Planted]]:
    """Make the test images of a texture, by what is planted in them.

    Nothing in them was trained on: donors are cut to the test columns too.
    """
    rng = np.random.default_rng(seed)
    parts = np.array_split(texture(name)[:, TRAIN_COLUMNS:], TESTS)
    donors = [texture(other)[:, TRAIN_COLUMNS:] for other in NAMES if other != name]
    return {
        "foreign": [foreign(part, donors, rng) for part in parts],
        "defects": [faulty(part, donors[0], rng) for part in parts],
    }


def pieces(name: str) -> list[Pixels]:
    """Cut the training columns into `PIECES` images, to be learned from or held out."""
    rows = np.array_split(texture(name)[:, :TRAIN_COLUMNS], PIECES[0])
    return [part for row in rows for part in np.array_split(row, PIECES[1], axis=1)]


def measure(detector: Detector, planted: Sequence[Planted], folder: Path) -> dict[str, Any]:
    """Measure pixel AUROC and AUPRO of the maps of images with planted defects.

    Parameters
    ----------
    detector : Detector
        Detector of patches, which has maps.
    planted : sequence of (image, mask)
        Images and masks of their defects.
    folder : Path
        Folder for the images, which must not exist. The maps are written beside it.
    """
    folder.mkdir(parents=True)
    for number, (image, _) in enumerate(planted):
        Image.fromarray(image).save(folder / f"{number}.png")
    report = detector.score(
        folder, maps=MapFiles(folder.with_name(f"{folder.name}-maps"), ("npy",))
    )
    with PixelScores() as pixels:
        for found in report.images:
            if found.maps is None:
                raise RuntimeError("maps were asked for")
            _, mask = planted[int(Path(found.path).stem)]
            pixels.add(np.load(found.maps["npy"]), mask)
        metrics = pixel_metrics([pixels])
    return {"auroc": metrics.auroc, "aupro": metrics.aupro}


def run(name: str, seed: int, settings: dict[str, Any]) -> dict[str, Any]:
    """Train on one texture, and measure its maps on foreign textures and on small defects."""
    start = time.process_time()
    with tempfile.TemporaryDirectory() as scratch:
        base = Path(scratch)
        (base / "normal").mkdir()
        for number, part in enumerate(pieces(name)):
            Image.fromarray(part).save(base / "normal" / f"{number:02}.png")
        path = base / "model.safetensors"
        detector = Detector.train(base / "normal", path=path, seed=seed, **settings)
        found = {
            kind: measure(detector, planted, base / kind)
            for kind, planted in tests(name, seed).items()
        }
    return {**found, "cpu_seconds": round(time.process_time() - start)}


def table() -> str:
    """Lay out the kept results."""
    titles = ["texture", "backbone", "images shown", "foreign: AUROC", "foreign: AUPRO"]
    titles += ["small defects: AUROC", "small defects: AUPRO", "CPU s", "seed"]
    rows = [
        [
            result["cls"],
            dict(result["settings"]).get("backbone", NO_BACKBONE),
            str(dict(result["settings"]).get("images_shown", "default")),
            *(f"{result[kind][m]:.3f}" for kind in ("foreign", "defects") for m in METRICS),
            str(result["cpu_seconds"]),
            str(result["seed"]),
        ]
        for result in cells.load("textures/*")
    ]
    return markdown.table(titles, rows)


def main() -> None:
    """Measure the textures that are named, all by default, and keep the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"some of {', '.join(NAMES)}")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--images-shown",
        type=int,
        help="without rotation stage; by default all stages as the tool has them",
    )
    parser.add_argument("--backbone", default=NO_BACKBONE, metavar="NAME")
    given = parser.parse_args()
    settings: dict[str, Any] = {"patches": 4000, "patch_size": 64}
    if (shown := given.images_shown) is not None:
        settings["images_shown"] = shown
    if shown:
        settings |= {"rotation_images_shown": 0, "encoder_images_shown": shown // 2}
    if given.backbone != NO_BACKBONE:
        settings["backbone"] = given.backbone
    if unknown := set(given.names) - set(NAMES):
        parser.error(f"no texture is named {sorted(unknown)[0]}")
    for name in given.names or NAMES:
        found = run(name, given.seed, settings)
        cell = Cell("textures", name, given.seed, "anoscan", tuple(sorted(settings.items())))
        cells.keep(cell, found, cells.command())
        sys.stderr.write(f"{name} seed {given.seed}: {json.dumps(found)}\n")


if __name__ == "__main__":
    main()
