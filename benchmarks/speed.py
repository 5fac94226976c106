"""Measure how fast images are scored, beside the two limits: ``python -m benchmarks.speed``.

The limits are decoding alone, and the passes of the networks that the answer needs, alone. Both are
measured in the same run, on the same files, with the same number of workers. A ratio of 1 means
that nothing else takes time. Kept results are ratios, since times depend on the machine.

``--check`` measures small images, and exits 1 where a ratio is below `LEAST`. ``--peers`` scores
the same files with other packages too; see `speed_peers`.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import tifffile
import torch
from PIL import Image

from anoscan import Detector
from anoscan.core.runtime import exact_float32
from anoscan.images.decode import Decoded, ImageRule, decode_all, decode_one
from anoscan.images.files import ImageFile, find
from anoscan.report.map_files import MapFiles
from anoscan.scoring.choices import BATCH_SIZE, ScoreRequest
from anoscan.scoring.measure import CHUNK
from anoscan.scoring.terms import Evidence
from anoscan.scoring.tiled import views
from benchmarks import cells, markdown

LEAST = 0.5  # ratio under which `--check` fails
ROUNDS = 3
KEPT = cells.RESULTS / "speed.json"
Pixels = np.ndarray
# A training that is long enough for scores to differ. What is measured does not depend on it.
QUICK = {
    "images_shown": 3200,
    "rotation_images_shown": 320,
    "encoder_images_shown": 1600,
    "reconstruction_images_shown": 320,
}


@dataclass(frozen=True)
class Set:
    """Files to score, and the training of the model that scores them."""

    count: int
    shape: tuple[int, ...]
    suffix: str
    settings: dict[str, Any]
    normal_side: int | None = (
        None  # side of the training images, where they are parts of large ones
    )


SETS = {
    "28x28 PNG": Set(2000, (28, 28), ".png", {"size": 28}),
    "64x64 PNG": Set(800, (64, 64), ".png", {"size": 64}),
    "640x640 grey JPEG at 128": Set(200, (640, 640), ".jpg", {"size": 128}),
    "640x640 RGB JPEG at 128": Set(200, (640, 640, 3), ".jpg", {"size": 128}),
    "1024x1024 16-bit TIFF at 128": Set(80, (1024, 1024), ".tif", {"size": 128}),
    "10000x10000 TIFF in tiles": Set(
        1, (10_000, 10_000), ".tif", {"size": 128, "patches": 128}, normal_side=640
    ),
}
CHECKED = ("28x28 PNG", "64x64 PNG")
TRAINED = 200  # images, at most


def drawn(shape: tuple[int, ...], number: int) -> Pixels:
    """Draw an image: waves with noise, as uint8; every tenth one has a bright spot."""
    rng = np.random.default_rng(number)
    y, x = np.mgrid[: shape[0], : shape[1]] * (64 / shape[0])
    plain = 128 + 60 * np.sin(x / 9 + rng.uniform(0, 0.3)) + 40 * np.cos(y / 7)
    if number % 10 == 9:
        top, left = rng.uniform(8, 56, 2)
        plain = plain + 90 * np.exp(-((y - top) ** 2 + (x - left) ** 2) / 8)
    plain = plain if len(shape) == 2 else np.repeat(plain[..., None], 3, 2)
    noisy: Pixels = (plain + rng.normal(0, 8, shape)).clip(0, 255).astype(np.uint8)
    return noisy


def save(pixels: Pixels, path: Path) -> None:
    """Write an image; TIFFs get 16 bits, but large ones keep 8."""
    if path.suffix == ".tif":
        deep = pixels if max(pixels.shape) > 4096 else pixels.astype(np.uint16) * 257
        tifffile.imwrite(path, deep)
    else:
        Image.fromarray(pixels).save(path, quality=90)


def write(which: Set, folder: Path) -> tuple[Path, Path]:
    """Write normal images and queries of a set, and return their folders."""
    normal, queries = folder / "normal", folder / "queries"
    for target in (normal, queries):
        target.mkdir()
    side = which.normal_side
    shape = which.shape if side is None else (side, side)
    for number in range(min(TRAINED, max(which.count, 60))):
        save(drawn(shape, 10 * number), normal / f"{number:05}{which.suffix}")
    for number in range(which.count):
        save(drawn(which.shape, number), queries / f"{number:05}{which.suffix}")
    return normal, queries


@dataclass
class Spent:
    """Seconds that a piece of work took, by the clock and of the processor."""

    wall: float = 0.0
    cpu: float = 0.0


@contextmanager
def timed() -> Iterator[Spent]:
    """Time a piece of work."""
    spent, wall, cpu = Spent(), time.perf_counter(), time.process_time()
    yield spent
    spent.wall, spent.cpu = time.perf_counter() - wall, time.process_time() - cpu


def passes(detector: Detector, files: Sequence[ImageFile]) -> Callable[[], None]:
    """Return the passes of the networks that scores of the files need, on decoded images."""
    model = detector.model
    if model.rule.patch is None:
        batch = np.stack([decode_one(file, model.rule).pixels for file in files[:BATCH_SIZE]])
        sizes = [len(files[i : i + BATCH_SIZE]) for i in range(0, len(files), BATCH_SIZE)]
    else:
        tiles = [len(x) for x in views(_whole(detector, files[0]), model.rule)]
        batch, sizes = next(iter(views(_whole(detector, files[0]), model.rule))), tiles * len(files)
    x = torch.from_numpy(np.ascontiguousarray(batch[:CHUNK]))

    def run() -> None:
        for size in sizes:
            with exact_float32():
                evidence = Evidence(model.networks, x[:size])
                _ = evidence.x_hat, evidence.features_hat, evidence.backbone
                if "rotation" in model.fitted:
                    _ = evidence.rotations

    return run


def _whole(detector: Detector, file: ImageFile) -> Decoded:
    return decode_one(file, detector.model.rule)


def peers(detector: Detector, normal: Path, workers: int) -> dict[str, Callable[[Any], None]]:
    """Return other packages' detectors, fitted to the normal images as the detector sees them."""
    from benchmarks import speed_peers  # needs packages that anoscan does not

    return speed_peers.peers(np.stack(list(pixels(find([normal]), detector.model.rule, workers))))


def pixels(files: Sequence[ImageFile], rule: ImageRule, workers: int) -> Iterator[Pixels]:
    """Yield decoded images (c, s, s), in [-1, 1]."""
    for image in decode_all(files, rule, workers=workers):
        assert isinstance(image, Decoded)
        yield image.pixels


def measure(name: str, folder: Path, workers: int, beside: bool = False) -> list[dict[str, Any]]:
    """Measure a set: a row for each answer, with images a second and ratios, as medians.

    With `beside`, other packages have a row each too.
    """
    which = SETS[name]
    normal, queries = write(which, folder)
    settings: dict[str, Any] = QUICK | which.settings
    path = folder / "m.safetensors"
    detector = Detector.train(normal, path=path, workers=workers, device="cpu", **settings)
    files, rule = find([queries]), detector.model.rule
    networks = passes(detector, files)
    answers = {
        "score": lambda: None,
        "maps": lambda: detector.view_files(None, MapFiles(folder / "maps", ("overlay",))),
        "residuals": lambda: detector.view_files(folder / "residuals", None),
    }
    request = ScoreRequest()
    spent: dict[str, list[Spent]] = {}

    def add(what: str, work: Callable[[], object]) -> None:
        with timed() as one:
            work()
        spent.setdefault(what, []).append(one)

    others = peers(detector, normal, workers) if beside and rule.patch is None else {}
    for _ in range(ROUNDS if which.count > 1 else 1):
        add("decoding", lambda: sum(1 for _ in decode_all(files, rule, workers=workers)))
        add("networks", networks)
        for answer, make in answers.items():
            add(answer, lambda m=make: sum(1 for _ in detector.stream(files, request, m())))  # type: ignore[misc]
        for peer, score in others.items():
            add(peer, lambda s=score: s(pixels(files, rule, workers)))  # type: ignore[misc]
    rates = {what: len(files) / median(s.wall for s in some) for what, some in spent.items()}
    cpu = {what: 1e3 * median(s.cpu for s in some) / len(files) for what, some in spent.items()}
    limit = min(rates["decoding"], rates["networks"])
    return [
        {
            "set": name,
            "answer": answer,
            "ratio": rates[answer] / limit,
            "cpu_ratio": max(cpu["decoding"], cpu["networks"]) / cpu[answer],
            "images_a_second": rates[answer],
            "decoding": rates["decoding"],
            "networks": rates["networks"],
            "cpu_ms": cpu[answer],
        }
        for answer in (*answers, *others)
    ]


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Format rows as a Markdown table."""
    head = ["set", "answer", "images/s", "decoding alone", "networks alone", "ratio", "CPU ms"]
    body = [
        [
            row["set"],
            row["answer"],
            f"{row['images_a_second']:.3g}",
            f"{row['decoding']:.3g}",
            f"{row['networks']:.3g}",
            f"{row['ratio']:.2f}",
            f"{row['cpu_ms']:.3g}",
        ]
        for row in rows
    ]
    return markdown.table(head, body)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure the sets that are named, print a table, and keep the ratios."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sets", nargs="+", choices=SETS, default=list(SETS))
    parser.add_argument("--workers", type=int, default=max(1, (os.cpu_count() or 2) - 1))
    parser.add_argument("--peers", action="store_true", help="score with other packages too")
    parser.add_argument("--check", action="store_true", help="fail where scoring is slow")
    given = parser.parse_args(arguments)
    rows: list[dict[str, Any]] = []
    for name in CHECKED if given.check else given.sets:
        with tempfile.TemporaryDirectory() as folder:
            found = measure(name, Path(folder), given.workers, beside=given.peers)
        print(table(found), flush=True)
        rows += found
    if given.check:
        slow = [row for row in rows if row["answer"] == "score" and row["ratio"] < LEAST]
        return 1 if slow else 0
    kept = json.loads(KEPT.read_text()) if KEPT.exists() else {}
    kept |= {f"{row['set']}, {row['answer']}": round(row["ratio"], 3) for row in rows}
    KEPT.write_text(json.dumps(kept, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
