"""Score images with an exported model: needs NumPy, Pillow and onnxruntime, but not anoscan.

python onnx_example.py FOLDER IMAGE...     FOLDER has model.onnx and card.json of anoscan export
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from PIL import Image, ImageOps


def prepared(path: str, card: dict[str, Any]) -> np.ndarray:
    """Return an image as an array (c, s, s), as the card says."""
    before, size = card["preprocessing"]["before"], card["preprocessing"]["before"]["size"]
    if before["fit"] != "stretch" or card["input"]["dtype"] != "uint8":
        raise SystemExit("This example stretches 8-bit images; the card says what to do instead.")
    image = ImageOps.exif_transpose(Image.open(path))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, (0, 0, 0, 255)), image)
    if image.mode not in ("1", "L"):
        image = image.convert("RGB")
    image = image.convert("L" if card["input"]["channels"] == "grey" else "RGB")
    image = image.resize((size, size), Image.Resampling.BILINEAR)
    return np.atleast_3d(np.asarray(image, np.uint8)).transpose(2, 0, 1)


def main(folder: Path, paths: list[str]) -> None:
    """Print a line an image, the most anomalous first."""
    card = json.loads((folder / "card.json").read_text(encoding="utf-8"))
    model = onnxruntime.InferenceSession(folder / "model.onnx", providers=["CPUExecutionProvider"])
    images = np.stack([prepared(path, card) for path in paths])
    scores, p_values, maps, _ = model.run(
        ["score", "p_value", "map", "reconstruction"], {"image": images}
    )
    for row in np.argsort(-scores, kind="stable"):
        verdict = "anomalous" if scores[row] > card["threshold"]["score"] else "normal"
        y, x = np.unravel_index(maps[row].argmax(), maps[row].shape)
        side = maps.shape[1]
        where = (
            f"hottest at {(x + 0.5) / side:.0%} from the left, {(y + 0.5) / side:.0%} from above"
        )
        print(f"{scores[row]:.4f}\t{p_values[row]:.4f}\t{verdict}\t{paths[row]}\t{where}")


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
