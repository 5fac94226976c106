"""Measure how good reconstructions are: ``python -m benchmarks.twin [--sets SET/CLASS,...]``.

A model with default settings is asked for reconstructions of unseen normal images, and of the same
images with one planted defect of a known place. PCA with a few components stands beside it.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from sklearn.decomposition import PCA
from sklearn.metrics import roc_auc_score

from anoscan.core.runtime import exact_float32
from anoscan.detector import Detector
from anoscan.evaluation.pixels import PixelScores, pixel_metrics
from anoscan.images.decode import Decoded, decode_all
from anoscan.images.files import find
from anoscan.report import pictures
from anoscan.training import defects
from benchmarks import cells, data, markdown
from benchmarks.cells import Cell

SETS = (
    "mnist/2", "mnist/5", "fashion-mnist/3", "fashion-mnist/6", "letters/C", "digits/3",
    "cifar-10/1", "elpv/64", "defects/brick", "defects/elpv", "elpv/128",
)  # fmt: skip
KINDS = tuple(kind for kind in defects.KINDS if kind != "blur")
COMPONENTS = (4, 16, 64)
NORMALS, REAL = 300, 400  # unseen normal images, and real test images of each label
PIXELS = (4, 16)  # smallest and largest size of a planted defect
SHARES = (1 / 8, 1 / 4)  # the same in shares of the side
WORST = 50  # the residual of an image is the mean of one in so many of its pixels, the worst ones
FITTED = 3000  # training images that PCA is fitted on, at most
SHEET = 8  # images on a contact sheet
SHEETS = Path(__file__).parent / "sheets"

Floats = npt.NDArray[np.float32]
Reconstruct = Callable[[Floats], Floats]
FIGURES = {
    "error": "error",
    "left": "left (4 to 16 px)",
    "left_share": "left (an eighth to a quarter)",
    "pixel_auroc": "pixel AUROC",
    "aupro": "AUPRO",
    "sharpness": "sharpness",
    "real": "real AUROC",
}


class Planted:
    """Unseen normal images with one defect each, the clean ones, and masks of the defects."""

    def __init__(self, normal: Floats, seed: int, *, shares: bool) -> None:
        rng = np.random.default_rng(seed)
        side, contrast = normal.shape[-1], float(normal.std())
        clean, changed, masks = [], [], []
        for number, image in enumerate(normal):
            low, high = (share * side for share in SHARES) if shares else PIXELS
            size, donor = round(rng.uniform(low, high)), normal[(number + 1) % len(normal)]
            kind = KINDS[number % len(KINDS)]
            found = defects.defect(kind, image, donor, size, contrast, side, rng)
            if found is not None:
                clean.append(image)
                changed.append(found[0])
                masks.append(found[1])
        self.clean, self.changed, self.masks = map(np.stack, (clean, changed, masks))

    def left(self, repaired: Floats) -> float:
        """Return the squared error to the clean images inside the defects, over their change."""
        inside = self.masks[:, None]
        missed = (np.square(repaired - self.clean) * inside).sum()
        return float(missed / (np.square(self.changed - self.clean) * inside).sum())

    def pixels(self, repaired: Floats) -> tuple[float, float]:
        """Return pixel AUROC and AUPRO of the absolute residual against the masks."""
        with PixelScores() as scores:
            for image, twin, mask in zip(self.changed, repaired, self.masks, strict=True):
                scores.add(np.abs(image - twin).mean(0), mask)
            found = pixel_metrics([scores])
        return found.auroc or 0.0, found.aupro or 0.0


def fine(images: Floats) -> float:
    """Return the power in the upper half of the spectrum of images (n, c, s, s)."""
    frequencies = np.fft.fftfreq(images.shape[-1])
    upper = np.hypot(frequencies[:, None], frequencies) >= 0.25
    return float(np.square(np.abs(np.fft.fft2(images)))[..., upper].sum())


def figures(
    reconstruct: Reconstruct, mean: Floats, normal: Floats, test: tuple[Floats, data.Flags]
) -> dict[str, float]:
    """Measure one way to reconstruct; `mean` is the mean training image, the keys are `FIGURES`."""
    twin = reconstruct(normal)
    small, shares = (Planted(normal, seed=7, shares=shares) for shares in (False, True))
    repaired = reconstruct(small.changed)
    auroc, aupro = small.pixels(repaired)
    images, anomalous = test
    residual = np.abs(images - reconstruct(images)).mean(1).reshape(len(images), -1)
    worst = max(1, residual.shape[1] // WORST)
    return {
        "error": float(np.square(twin - normal).mean() / np.square(mean - normal).mean()),
        "left": small.left(repaired),
        "left_share": shares.left(reconstruct(shares.changed)),
        "pixel_auroc": auroc,
        "aupro": aupro,
        "sharpness": fine(twin) / fine(normal),
        "real": float(roc_auc_score(anomalous, np.sort(residual)[:, -worst:].mean(1))),
    }


def of_detector(detector: Detector) -> Reconstruct:
    """Return the reconstructions of a detector, as a function of images (n, c, s, s)."""
    networks = detector.model.networks

    def reconstruct(images: Floats) -> Floats:
        with exact_float32():
            parts = torch.from_numpy(images).split(64)
            return np.concatenate([networks.reconstruct(part).numpy() for part in parts])

    return reconstruct


def of_pca(train: Floats, components: int) -> Reconstruct:
    """Return the reconstructions of PCA, as a function of images (n, c, s, s)."""
    flat = train[:FITTED].reshape(len(train[:FITTED]), -1)
    rank = min(components, *flat.shape)
    pca = PCA(rank, svd_solver="randomized", random_state=0).fit(flat)

    def reconstruct(images: Floats) -> Floats:
        found = pca.inverse_transform(pca.transform(images.reshape(len(images), -1)))
        return np.asarray(found.reshape(images.shape), np.float32)

    return reconstruct


def measure(name: str, seed: int, settings: dict[str, Any]) -> dict[str, Any]:
    """Train on one set and measure its reconstructions, those of PCA, and draw a contact sheet."""
    set_name, cls = name.split("/")
    split = data.load(set_name, cls, seed=seed)
    rng = np.random.default_rng(seed)
    rows = [
        rng.permutation(np.flatnonzero(split.anomalous == label))[:REAL] for label in (False, True)
    ]
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        data.write_folder(split.train, folder / "train")
        data.write_folder(split.test[np.concatenate(rows)], folder / "test")
        start = time.process_time()
        path = folder / "model.safetensors"
        detector = Detector.train(folder / "train", path=path, seed=seed, workers=1, **settings)
        seconds = time.process_time() - start
        train, test = (_read(detector, folder / part) for part in ("train", "test"))
    normal = test[: len(rows[0])][:NORMALS]
    mean = train.mean(0, keepdims=True)
    labelled = test, np.arange(len(test)) >= len(rows[0])
    ways = {f"PCA {k}": of_pca(train, k) for k in COMPONENTS}
    own = of_detector(detector)
    found = {way: figures(made, mean, normal, labelled) for way, made in ways.items()}
    if seed == 0 and not settings:
        _draw(own, normal, f"twin-{set_name}-{cls}")
    return {
        "anoscan": figures(own, mean, normal, labelled),
        "pca": found,
        "reconstructions": detector.model.reconstructions,
        "cpu_seconds": round(seconds),
    }


def _read(detector: Detector, folder: Path) -> Floats:
    decoded = decode_all(find([folder]), detector.model.rule, workers=1)
    return np.stack([image.pixels for image in decoded if isinstance(image, Decoded)])


def _draw(reconstruct: Reconstruct, normal: Floats, name: str) -> None:
    """Draw a contact sheet: queries with a defect, clean images, reconstructions, residuals."""
    planted = Planted(normal[: 2 * SHEET], seed=7, shares=True)
    query, clean = planted.changed[:SHEET], planted.clean[:SHEET]
    twin = reconstruct(query)
    residual = np.abs(query - twin).mean(1, keepdims=True).repeat(query.shape[1], 1)
    bright = 2 * residual / max(float(residual.max()), 1e-6) - 1
    sheet = pictures.grid(np.concatenate([query, clean, twin, bright]), SHEET)
    pictures.save_png(sheet, SHEETS / f"{name}.png")


def table() -> str:
    """Lay out the kept results: each set, and each way to reconstruct, with spreads over seeds."""
    found: dict[tuple[str, str, str], list[dict[str, float]]] = {}
    for row in cells.load("twin/*"):
        name = f"{row['data'].partition('/')[2]} {row['cls']}"
        shown = str(dict(row["settings"]).get("images_shown", "default"))
        for way, values in {"anoscan": row["anoscan"], **row["pca"]}.items():
            found.setdefault((name, shown, way), []).append(values)
    lines = [
        [*key, str(len(values)), *(markdown.spread([v[name] for v in values]) for name in FIGURES)]
        for key, values in found.items()
    ]
    return markdown.table(
        ["set", "images shown", "reconstructed by", "seeds", *FIGURES.values()], lines
    )


def main() -> None:
    """Measure the cells that are not kept yet, keep them, and print the table."""
    parser = cells.parser(__doc__)
    parser.add_argument("--sets", type=cells.listed, default=list(SETS))
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--images-shown", type=int, help="length of the GAN stage")
    options = parser.parse_args()
    if unknown := set(options.sets) - set(SETS):
        parser.error(f"unknown set {sorted(unknown)[0]}; there are {', '.join(SETS)}")
    settings = {"images_shown": options.images_shown} if options.images_shown else {}
    for seed in range(options.first_seed, options.first_seed + options.seeds):
        for name in options.sets:
            set_name, cls = name.split("/")
            cell = Cell(f"twin/{set_name}", cls, seed, "anoscan", tuple(settings.items()))
            if options.again or not cells.find(cell):
                result = cells.keep(cell, measure(name, seed, settings), cells.command())
                own = ", ".join(f"{key} {value:.3f}" for key, value in result["anoscan"].items())
                sys.stderr.write(f"{name} seed {seed}: {own} ({result['cpu_seconds']} CPU s)\n")
    print(table())


if __name__ == "__main__":
    main()
