"""Measure parameters and peak memory of a training by size: ``python -m benchmarks.memory``.

Every architecture gets a short training on RGB noise, in a process of its own. The operating system
reports the peak of its resident memory. This includes the program, the libraries, the networks, the
optimizers and one batch.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from anoscan.core import registry
from anoscan.model import file as model_file
from benchmarks import cells, markdown
from benchmarks.cells import Cell

IMAGES = 64
SHOWN = 96  # three batches of the default size in every stage: memory no longer grows after them
# Networks that grow reach full size late in the GAN stage, and have a gradient penalty there at
# step 16.
GAME = {"progressive": 17 * 32}
NETWORKS = ("generator", "discriminator", "encoder")


def train(architecture: str, size: int, folder: Path) -> dict[str, Any]:
    """Train, and measure the networks and the peak memory.

    Returns
    -------
    dict
        Millions of parameters of each network, ``peak_gb`` in GiB, and ``precision``.

    Raises
    ------
    RuntimeError
        When the training fails.
    """
    model = folder / f"{architecture}-{size}.safetensors"
    lengths = [f"--{stage}images-shown={SHOWN}" for stage in ("encoder-", "rotation-")]
    lengths.append(f"--images-shown={GAME.get(architecture, SHOWN)}")
    command = [sys.executable, "-m", "anoscan", "train", str(folder / str(size)), "--quiet"]
    command += ["--name", model.stem, "--architecture", architecture, "--size", str(size), *lengths]
    home = os.environ | {"ANOSCAN_HOME": str(folder), "OMP_NUM_THREADS": "1"}
    child = subprocess.Popen(command, env=home)
    _, status, usage = os.wait4(child.pid, 0)
    if status:
        raise RuntimeError(f"{architecture} {size}: exit status {status}")
    millions = dict.fromkeys(NETWORKS, 0.0)
    contents = model_file.load(folder / "models" / model.name)
    for name, tensor in contents.tensors.items():
        part = name.split("/")[0]
        if part in millions:
            millions[part] += tensor.numel() / 1e6
    precision = contents.metadata["precision"]
    return millions | {"peak_gb": usage.ru_maxrss / 2**20, "precision": precision}


def table() -> str:
    """Lay out the kept results, sorted by size and peak memory."""
    kept = sorted(cells.load("memory/*"), key=lambda row: (int(row["cls"]), row["peak_gb"]))
    rows = [
        [
            row["cls"],
            f"`{dict(row['settings'])['architecture']}`",
            *(f"{row[part]:.2f}" for part in NETWORKS),
            f"{row['peak_gb']:.1f}",
            row["precision"],
        ]
        for row in kept
    ]
    titles = ["side", "architecture", *NETWORKS, "peak, GiB", "precision"]
    return markdown.table(titles, rows)


def main() -> None:
    """Measure what has no result yet, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sizes", default="64,128,256")
    parser.add_argument("--again", action="store_true", help="measure what is there too")
    parser.add_argument("--architectures", default=",".join(registry.names("architectures")))
    options = parser.parse_args()
    rng = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as name:
        for size in map(int, options.sizes.split(",")):
            (Path(name) / str(size)).mkdir()
            for index in range(IMAGES):
                pixels = rng.integers(0, 256, (size, size, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(Path(name) / str(size) / f"{index}.png")
            for architecture in options.architectures.split(","):
                settings = (("architecture", architecture),)
                cell = Cell("memory", str(size), 0, "anoscan", settings)
                if options.again or not cells.find(cell):
                    found = train(architecture, size, Path(name))
                    cells.keep(cell, found, cells.command())
    print(table())


if __name__ == "__main__":
    main()
