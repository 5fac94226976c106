"""Print how often images are called a mismatch: ``python -m benchmarks.mismatch``.

A mismatch is an image whose size, depth, colour, brightness or sharpness no normal image has
(`anoscan.images.mismatch`). 200 query images of each kind are compared with 500 training images.
The kinds are unchanged normal images, true anomalies, and changed normal images. One bright
rectangle of a sixth to two fifths of the sides is an anomaly, and should not be called a mismatch.
An image that is blurred, noisy or brighter as a whole should be called a mismatch.

Two sets are made here, whose images differ little in brightness and sharpness: an even texture, and
a disc.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from anoscan.images.canvas import Canvas
from anoscan.images.mismatch import Look, Looks
from benchmarks import data

KNOWN, QUERIES, SIDE = 500, 200, 64
SETS = (("mnist", "1"), ("mnist", "8"), ("fashion-mnist", "0"), ("cifar-10", "0"), ("elpv", "64"))

Pixels = npt.NDArray[np.uint8]
Change = Callable[[Pixels, np.random.Generator], npt.NDArray[np.generic]]


def texture(rng: np.random.Generator) -> Pixels:
    """Make an image (64, 64) of smooth noise that is equally strong everywhere."""
    noise = ndimage.gaussian_filter(rng.normal(size=(SIDE, SIDE)), 1.5)
    return _clipped(120 + 150 * noise)


def disc(rng: np.random.Generator) -> Pixels:
    """Draw an image (64, 64) of a bright disc near the middle, with little noise."""
    rows, columns = np.indices((SIDE, SIDE)) - SIDE / 2 - rng.normal(0, 2, (2, 1, 1))
    inside = np.hypot(rows, columns) < rng.normal(SIDE / 4, 1)
    return _clipped(60 + 120 * inside + rng.normal(0, 3, (SIDE, SIDE)))


def marked(image: Pixels, rng: np.random.Generator) -> Pixels:
    """Copy an image, and draw one white rectangle in it."""
    found, side = image.copy(), np.array(image.shape[:2])
    height, width = (side * rng.uniform(1 / 6, 2 / 5, 2)).astype(int)
    top, left = rng.integers(0, side - (height, width))
    found[top : top + height, left : left + width] = 255
    return found


def blurred(sigma: float) -> Change:
    """Make a change that blurs a whole image with a Gaussian of `sigma` pixels."""
    return lambda image, rng: ndimage.gaussian_filter(
        image.astype(float), (sigma, sigma) + (0,) * (image.ndim - 2)
    )


CHANGES: dict[str, Change] = {
    "normal": lambda image, rng: image,
    "rectangle": marked,
    "blur 1": blurred(1),
    "blur 1.5": blurred(1.5),
    "noise": lambda image, rng: image + rng.normal(0, 40, image.shape),
    "brighter": lambda image, rng: image + 60.0,
}
MADE = {"texture": texture, "disc": disc}


def look(image: npt.NDArray[np.generic]) -> Look:
    """Measure size, brightness and sharpness of an 8-bit image at its own size."""
    canvas = Canvas(_clipped(image), 1 if image.ndim == 2 else 3, None)
    return Look.of("8-bit", canvas, (image.shape[1], image.shape[0]))


def shares(
    known: Iterable[Pixels], queries: dict[str, list[npt.NDArray[np.generic]]]
) -> dict[str, float]:
    """Measure the share of each kind of query images that is called a mismatch."""
    looks = Looks.of([look(image) for image in known])
    return {
        kind: float(np.mean([looks.reasons(look(image)) is not None for image in images]))
        for kind, images in queries.items()
    }


def of_set(name: str, cls: str, seed: int) -> dict[str, float]:
    """Measure the shares of mismatches in a set, by kind of query images."""
    rng = np.random.default_rng(seed)
    if name in MADE:
        images = [MADE[name](rng) for _ in range(KNOWN + QUERIES)]
        return shares(images[:KNOWN], _changed(images[KNOWN:], rng))
    split = data.load(name, cls, seed=seed)
    normal, odd = split.test[~split.anomalous], split.test[split.anomalous]
    queries = _changed(normal[rng.permutation(len(normal))[:QUERIES]], rng)
    queries["anomalies"] = list(odd[rng.permutation(len(odd))[:QUERIES]])
    return shares(split.train[rng.permutation(len(split.train))[:KNOWN]], queries)


def _changed(
    images: Iterable[Pixels], rng: np.random.Generator
) -> dict[str, list[npt.NDArray[np.generic]]]:
    kept = list(images)
    return {name: [change(image, rng) for image in kept] for name, change in CHANGES.items()}


def _clipped(values: npt.NDArray[np.generic]) -> Pixels:
    return np.clip(values, 0, 255).astype(np.uint8)


def main() -> None:
    """Print a Markdown table with a row for each set."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=0)
    seed = parser.parse_args().seed
    kinds = ["normal", "anomalies", *list(CHANGES)[1:]]
    print("| set | " + " | ".join(kinds) + " |\n" + "|---" * (len(kinds) + 1) + "|")
    for name, cls in (*SETS, *((made, "") for made in MADE)):
        found = of_set(name, cls, seed)
        cells = [f"{found[kind]:.2f}" if kind in found else "-" for kind in kinds]
        print(f"| {name} {cls}".rstrip() + " | " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()
