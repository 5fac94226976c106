"""How does AUROC grow with training time? Run ``python -m benchmarks.lengths --help``.

Trainings of several lengths are compared by their CPU seconds: the default, and f-AnoGAN's recipe
(WGAN-GP in float32, five steps of the critic to one of the generator, the paper's score). Another
version is measured with its ``src`` first on ``PYTHONPATH`` and ``--methods anoscan --name NAME``.
So only its Python API is used here. A version without ``anoscan.core`` needs a module
``anoscan/core/errors.py`` that imports all of ``anoscan.errors``. Results are kept and continued
like those of `benchmarks.run`.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import torch
from sklearn.metrics import roc_auc_score

from anoscan import Detector
from benchmarks import cells, data, markdown
from benchmarks.cells import Cell, keep

LENGTHS = (4_000, 8_000, 12_000, 16_000, 32_000)  # images shown in the game
WGAN_GP = {
    "objective": "wgan-gp",
    "architecture": "dcgan",
    "rotation_images_shown": 0,
    "reconstruction_images_shown": 0,
    "precision": "float32",
}


def measure(split: data.Split, seed: int, length: int, critic: bool) -> dict[str, Any]:
    """Train with a length, and return AUROC of the test images and CPU seconds of the training."""
    chosen = WGAN_GP | {"encoder_images_shown": length // 2} if critic else {}
    settings: dict[str, Any] = {"images_shown": length, "workers": 1, "device": "cpu"} | chosen
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        data.write_folder(split.train, folder / "normal")
        data.write_folder(split.test, folder / "queries")
        start = time.process_time()
        path = folder / "m.safetensors"
        detector = Detector.train(folder / "normal", path=path, seed=seed, **settings)
        seconds = time.process_time() - start
        found = detector.score(folder / "queries", score="paper" if critic else "calibrated")
    by_path = {image.path: image.score for image in found.images}
    scores = [by_path[path] for path in sorted(by_path)]
    return {"auroc": float(roc_auc_score(split.anomalous, scores)), "cpu_seconds": seconds}


def compute(cell: Cell, command: str) -> dict[str, Any]:
    """Measure a cell, and keep the result with the commit and command that made it."""
    torch.set_num_threads(1)
    split = data.load(cell.data.removeprefix("lengths/"), cell.cls, seed=cell.seed)
    length = int(dict(cell.settings)["images_shown"])
    found = measure(split, cell.seed, length, cell.method == "wgan-gp")
    return keep(cell, found | cells.sizes(split), command)


def table() -> str:
    """Lay out mean AUROC, its deviation over seeds and CPU seconds, by method and length."""
    found: dict[tuple[str, str], dict[int, list[dict[str, Any]]]] = defaultdict(dict)
    for result in cells.load("lengths/*"):
        name = f"{result['data'].removeprefix('lengths/')} {result['cls']}"
        by_length = found[name, result["method"]]
        by_length.setdefault(dict(result["settings"])["images_shown"], []).append(result)
    titles = ["set, class", "version", "seeds", *(f"{length:,} images" for length in LENGTHS)]
    rows = [
        [*names, str(max(map(len, of.values()))), *(_shown(of.get(n, [])) for n in LENGTHS)]
        for names, of in sorted(found.items())
    ]
    return markdown.table(titles, rows)


def _shown(results: list[dict[str, Any]]) -> str:
    if not results:
        return "-"
    values = [result["auroc"] for result in results]
    spread = f" ± {statistics.stdev(values):.3f}" if len(values) > 1 else ""
    seconds = statistics.fmean(result["cpu_seconds"] for result in results)
    return f"{statistics.fmean(values):.3f}{spread}, {seconds:.0f} s"


def main() -> None:
    """Compute missing cells, with a line each on stderr; print JSON of all cells."""
    parser = cells.parser(__doc__)
    parser.add_argument("--data", required=True, help=", ".join(data.SETS))
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--lengths", type=cells.listed, default=[str(n) for n in LENGTHS])
    parser.add_argument("--methods", type=cells.listed, default=["anoscan", "wgan-gp"])
    parser.add_argument("--name", help="name of the version, in place of anoscan")
    options = parser.parse_args()
    wanted = [
        Cell(
            f"lengths/{options.data}",
            cls,
            seed,
            options.name or method,
            (("images_shown", int(length)),),
        )
        for seed in range(options.first_seed, options.first_seed + options.seeds)
        for cls in options.classes or data.development(options.data)
        for length in options.lengths
        for method in options.methods
    ]
    cells.sweep(wanted, compute, options)


if __name__ == "__main__":
    main()
