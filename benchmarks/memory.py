"""Parameters and peak memory of a training by size: ``python -m benchmarks.memory``.

A short training of every architecture on RGB noise, each in a process of its own, whose highest
resident memory the system reports: the program, the libraries, networks, optimizers, one batch.
"""

from __future__ import annotations

import argparse
import json
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
from benchmarks.cells import RESULTS

IMAGES = 64
SHOWN = 96  # three batches of the default size in every stage: memory has settled
# Networks that grow have full size late in the game, and meet a gradient penalty there at step 16.
GAME = {"progressive": 17 * 32}
NETWORKS = ("generator", "discriminator", "encoder")


def train(architecture: str, size: int, folder: Path) -> dict[str, Any]:
    """Millions of parameters of each network, peak resident memory in GB, and the precision."""
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
    tensors, metadata = model_file.load(folder / "models" / model.name)
    for name, tensor in tensors.items():
        part = name.split("/")[0]
        if part in millions:
            millions[part] += tensor.numel() / 1e6
    return millions | {"peak_gb": usage.ru_maxrss / 2**20, "precision": metadata["precision"]}


def main() -> None:
    """Measure what has no result yet; a table on stdout."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sizes", default="64,128,256")
    parser.add_argument("--again", action="store_true", help="measure what is there too")
    parser.add_argument("--architectures", default=",".join(registry.names("architectures")))
    options = parser.parse_args()
    target = RESULTS / "memory.json"
    found = json.loads(target.read_text()) if target.exists() else {}
    rng = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as name:
        for size in map(int, options.sizes.split(",")):
            (Path(name) / str(size)).mkdir()
            for index in range(IMAGES):
                pixels = rng.integers(0, 256, (size, size, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(Path(name) / str(size) / f"{index}.png")
            for architecture in options.architectures.split(","):
                key = f"{architecture} {size}"
                if options.again or key not in found:
                    found[key] = train(architecture, size, Path(name))
                    target.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    print("| architecture, size | G, million parameters | D | E | peak memory, GB | precision |")
    print("|---|---|---|---|---|---|")
    for key, cell in found.items():
        figures = " | ".join(f"{cell[part]:.1f}" for part in NETWORKS)
        print(f"| {key} | {figures} | {cell['peak_gb']:.1f} | {cell['precision']} |")


if __name__ == "__main__":
    main()
