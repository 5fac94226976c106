"""Measure the AnoGAN family choice by choice: ``python -m benchmarks.lineage JOB --help``.

``table`` changes one choice of the default at a time, of those that change the GAN. ``order``
compares the ways to learn an encoder for the same GAN, over seeds. ``search`` compares AnoGAN's
search in latent space with the encoder that replaced it. ``sizes`` trains `progressive` at three
sizes on photographs of solar cells.

Results are kept and continued like those of `benchmarks.run`. With ``--sheets``, a sheet of samples
is written for every GAN that ``table`` or ``sizes`` trains with seed 0.
"""

from __future__ import annotations

import argparse
import functools
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.metrics import roc_auc_score
from torch import Tensor

from anoscan.core import registry
from anoscan.core.config import IMAGES_SHOWN, TrainConfig, architecture_for
from anoscan.core.runtime import exact_float32
from anoscan.detector import Detector
from anoscan.images.decode import ImageRule, decode
from anoscan.images.files import ImageFile
from anoscan.networks.architectures import Networks
from anoscan.networks.gan_stage import sample
from anoscan.report import pictures
from anoscan.scoring.choices import Inversion
from anoscan.scoring.search import search
from anoscan.scoring.terms import Evidence
from benchmarks import cells, data, run
from benchmarks.cells import Cell, keep

SHEETS = Path(__file__).parent / "sheets"
SETS = {"mnist": ("1", "3", "8"), "fashion-mnist": ("0", "6"), "cifar-10": ("0", "5", "8")}
ORDER = {"mnist": ("8",), "fashion-mnist": ("0",), "cifar-10": ("0",)}
ENCODERS = ("default", "vae", "izi", "ziz")  # rows with the same GAN, and so the same default score
SEARCHED = (("mnist", "3"), ("fashion-mnist", "0"))
# These are images shown in the GAN stage, by side of the solar cells in pixels. A step at full size
# costs twice as much when the side doubles. All three trainings take an hour of one core.
SIZES = {"64": 32_000, "128": 32_000, "256": 16_000}
SIZES_WIDTH = 16

# A GAN that grows gets a longer GAN stage. Later stages keep their length, so that the row differs
# from the default only in its GAN.
_LATER = {
    "rotation_images_shown": 3 * IMAGES_SHOWN,
    "encoder_images_shown": IMAGES_SHOWN // 3,
}
LENGTHS: dict[str, dict[str, Any]] = {"progressive": {"images_shown": 2 * IMAGES_SHOWN, **_LATER}}
# The slow rows are repeated with narrow networks. The first two then cost about as much as the
# default.
NARROW, NARROW_WIDTH = ("resnet", "progressive", "f-anogan"), 8
FAMILIES = {
    "architecture": "architectures",
    "objective": "objectives",
    "encoder": "encoders",
    "mapping": "mappings",
}
F_ANOGAN = {
    "architecture": "resnet",
    "objective": "wgan-gp",
    "rotation_images_shown": 0,
    "images_shown": 3 * IMAGES_SHOWN,
    "encoder_images_shown": IMAGES_SHOWN // 3,
}

# Without the rotation stage, the features f are those of the discriminator of the GAN stage, as in
# the papers. In all rows the generator itself makes the reconstructions, as it does there.
PAPERS: dict[str, Any] = {"reconstruction_images_shown": 0}
SETTINGS: dict[str, Any] = {"rotation_images_shown": 0} | PAPERS
SEARCHES = {
    "refine": Inversion("refine"),
    "search": Inversion("search"),
    "search, fool": Inversion("search", discrimination_loss="fool"),
}
IMAGES = 200  # images to search, half of them normal
ALONE = 3  # images that are also searched one by one, to measure the time
PASSES = 20  # passes of the encoder over 64 images, because one pass is too short to time
STEPS = (0, 50, 100, 250, 500)
SHEET, SHEET_SIDE = 6, 32  # samples along a side of a sheet, and the least pixels a side of each
# A sheet has at most this many pixels a side, without gaps, and so fewer samples if they are large.
# A file then stays under 400 KB.
SHEET_PIXELS = 1280


def rows() -> dict[str, dict[str, Any]]:
    """List the settings of every row: the default, then the default with one choice changed.

    The choices are those of the registry. ``f-anogan`` is the combination of the f-AnoGAN paper.
    Rows that end with a number have networks of that width.
    """
    found: dict[str, dict[str, Any]] = {"default": {}}
    usual = TrainConfig().to_dict() | {"architecture": architecture_for(32)}
    for option, family in FAMILIES.items():
        for name in registry.names(family):
            if name != usual[option]:
                found[name] = {option: name} | LENGTHS.get(name, {})
    found["f-anogan"] = F_ANOGAN
    for name in NARROW:
        found[f"{name}-{NARROW_WIDTH}"] = found[name] | {"width": NARROW_WIDTH}
    return found


def lengths(size: str) -> tuple[tuple[str, Any], ...]:
    """Make the settings of a training at a size of `SIZES`, sorted by name."""
    shown = SIZES[size]
    stages = {"rotation_images_shown": shown // 4, "encoder_images_shown": shown // 4}
    given = {"size": int(size), "width": SIZES_WIDTH, "images_shown": shown} | stages
    return tuple(sorted(given.items()))


def sheet_path(cell: Cell) -> Path:
    """Name the file for samples of a cell's GAN."""
    return SHEETS / f"{Path(cell.data).name}-{cell.cls}-{cell.method}.png"


def has_own_gan(settings: dict[str, Any]) -> bool:
    """Say whether settings train a GAN of their own.

    A changed encoder or mapping leaves the GAN as it is, except for `bigan`, which trains both
    together. The default has its own GAN too.
    """
    alone = not {"encoder", "mapping"} & set(settings)
    return alone or settings.get("mapping") == "bigan"


def compute_row(cell: Cell, command: str, sheets: bool = False) -> dict[str, Any]:
    """Train one row on one class, measure it and keep the result; with `sheets`, draw samples."""
    torch.set_num_threads(1)
    settings = rows()[cell.method] | dict(cell.settings)
    split = data.load(Path(cell.data).name, cell.cls, seed=cell.seed)

    def look(detector: Detector) -> None:
        if sheets and cell.seed == 0 and has_own_gan(settings):
            network, config = detector.model.networks.generator, detector.model.config
            side = min(SHEET, SHEET_PIXELS // detector.model.rule.size)
            images = sample(network, side**2, config.latent_dim, cell.seed, "sheet").cpu().numpy()
            pictures.save_png(pictures.grid(images, side, zoom_to=SHEET_SIDE), sheet_path(cell))

    found = run.anoscan(split, cell.seed, PAPERS | settings, look)
    made = {"torch": str(torch.__version__)} | cells.sizes(split)
    return keep(cell, found | made, command)


def compute_search(cell: Cell, command: str) -> dict[str, Any]:
    """Train a GAN and an encoder; measure AUROC and time of every mapping of the same images."""
    torch.set_num_threads(1)
    name, _, cls = cell.cls.rpartition("-")
    split = data.load(name, cls, seed=cell.seed)
    with tempfile.TemporaryDirectory() as folder:
        data.write_folder(split.train, Path(folder) / "train")
        start = time.process_time()
        detector = Detector.train(
            Path(folder) / "train",
            path=Path(folder) / "model.safetensors",
            seed=cell.seed,
            workers=1,
            **SETTINGS,
        )
        seconds = time.process_time() - start
    x, anomalous = _some(split, cell.seed, detector.model.rule)
    networks = detector.model.networks
    with exact_float32():
        found = _mapped(networks, x, anomalous)
        clock = _clock(networks, x)
    figures = {
        "auroc": found["search"]["auroc"]["anogan"],
        "cpu_seconds": seconds,
        "mappings": found,
        "seconds_an_image": clock,
        "config": detector.model.metadata["config"],
        "torch": str(torch.__version__),
    }
    return keep(cell, figures | cells.sizes(split), command)


def _some(split: data.Split, seed: int, rule: ImageRule) -> tuple[Tensor, np.ndarray]:
    """Draw `IMAGES` test images, half of them normal.

    Returns
    -------
    x, anomalous
        Images (n, c, s, s) as the networks see them, and their labels (n,).
    """
    generator = np.random.default_rng(seed)
    chosen = np.concatenate(
        [
            generator.choice(np.flatnonzero(split.anomalous == odd), IMAGES // 2, replace=False)
            for odd in (False, True)
        ]
    )
    with tempfile.TemporaryDirectory() as name:
        paths = data.write_folder(split.test[chosen], Path(name))
        files = [ImageFile(path.name, path, path.name) for path in paths]
        pixels = [decode(file, rule).pixels for file in files]
    return torch.from_numpy(np.stack(pixels)), split.anomalous[chosen]


def _mapped(networks: Networks, x: Tensor, anomalous: np.ndarray) -> dict[str, Any]:
    """Measure AUROC of the published scores by each mapping, and the losses of each search."""
    by_encoder = _aurocs(networks, x, networks.encoder(x), anomalous)
    found: dict[str, Any] = {"encoder": {"auroc": by_encoder}}
    for name, how in SEARCHES.items():
        result = search(networks, x, how)
        kept = [step for step in STEPS if step <= how.length]
        found[name] = {
            "auroc": _aurocs(networks, x, result.z, anomalous),
            "steps": kept,
            "loss": result.loss.mean(1)[kept].tolist(),
            "residual": result.residual.mean(1)[kept].tolist(),
        }
    return found


def _aurocs(networks: Networks, x: Tensor, z: Tensor, anomalous: np.ndarray) -> dict[str, float]:
    evidence = Evidence(networks, x, z=z)
    found = {}
    for name in ("anogan", "paper"):
        scores = registry.load("terms", name).measure(evidence, {})
        found[name] = float(roc_auc_score(anomalous, scores.numpy()))
    return found


def _clock(networks: Networks, x: Tensor) -> dict[str, float]:
    """Measure CPU seconds for each image: of searches, one by one and batched, and the encoder."""
    how = SEARCHES["search"]

    def encoded(images: Tensor) -> None:
        x_hat = networks.reconstruct(images)
        networks.discriminator.features(images)
        networks.discriminator.features(x_hat)

    def one_by_one() -> None:
        for image in x[:ALONE].split(1):
            search(networks, image, how, lanes=1)

    def passes() -> None:
        for _ in range(PASSES):
            encoded(x[:64])

    encoded(x[:64])  # the first pass is not timed, because it prepares kernels
    return {
        "search_one_by_one": _timed(one_by_one) / ALONE,
        "search_in_batches": _timed(lambda: search(networks, x[:64], how)) / 64,
        "refine_in_batches": _timed(lambda: search(networks, x[:64], SEARCHES["refine"])) / 64,
        "encoder_in_batches": _timed(passes) / (64 * PASSES),
    }


def _timed(job: Callable[[], object]) -> float:
    start = time.process_time()
    job()
    return time.process_time() - start


def wanted(options: argparse.Namespace) -> list[Cell]:
    """List the cells of a job, ordered by seed: a sweep that is cut short has complete seeds."""
    seeds = range(options.first_seed, options.first_seed + options.seeds)
    if options.job == "search":
        return [
            Cell("lineage/search", f"{name}-{cls}", seed, "dcgan")
            for seed in seeds
            for name, cls in SEARCHED
            if name in options.data
        ]
    if options.job == "sizes":
        return [
            Cell("lineage/elpv", size, seed, "progressive", lengths(size))
            for seed in seeds
            for size in options.classes or SIZES
        ]
    ordered = options.job == "order"
    folder, sets, chosen = (
        ("lineage/order", ORDER, ENCODERS) if ordered else ("lineage", SETS, options.rows)
    )
    return [
        Cell(f"{folder}/{name}", cls, seed, row)
        for seed in seeds
        for name in options.data
        for cls in options.classes or sets[name]
        for row in chosen
    ]


def arguments() -> argparse.Namespace:
    """Read the command line of a sweep."""
    parser = cells.parser(__doc__)
    parser.add_argument("job", choices=["table", "order", "search", "sizes"])
    parser.add_argument("--data", type=cells.listed, default=list(SETS), help=", ".join(SETS))
    games = [name for name, settings in rows().items() if has_own_gan(settings)]
    parser.add_argument(
        "--rows", type=cells.listed, default=games, help=f"of table: {', '.join(rows())}"
    )
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--sheets", action="store_true", help="draw samples of what is trained")
    options = parser.parse_args()
    if unknown := set(options.rows) - set(rows()):
        parser.error(f"unknown row {', '.join(unknown)}; there are {', '.join(rows())}")
    if unknown := set(options.data) - set(SETS):
        parser.error(f"unknown set {', '.join(unknown)}; there are {', '.join(SETS)}")
    return options


def main() -> None:
    """Compute missing cells, with a line each on stderr; print JSON of all cells."""
    options = arguments()
    row = functools.partial(compute_row, sheets=options.sheets)
    cells.sweep(wanted(options), compute_search if options.job == "search" else row, options)


if __name__ == "__main__":
    main()
