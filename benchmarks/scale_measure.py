"""Measure the small steps of which `benchmarks.scale_model` makes large runs.

``python -m benchmarks.scale measure`` takes a few minutes of one core, and writes
``results/scale/measured.json``. Steps that compute are measured in seconds of the processor, so
that other programs do not count. The object server is moto's, in a process of this computer: it
shows what the client computes for a request, not how long a network takes.
"""

from __future__ import annotations

import argparse
import dataclasses
import gc
import json
import os
import pickle
import subprocess
import sys
import tempfile
import time
import tracemalloc
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from anoscan import Detector
from anoscan.core import shares, storage
from anoscan.core.config import TrainConfig, architecture_for, decided
from anoscan.core.results import ImageScore
from anoscan.core.runtime import Runtime
from anoscan.images.decode import ImageRule, decode_one
from anoscan.images.files import ImageFile, find
from anoscan.model.judge import Wanted
from anoscan.model.model import fresh_networks
from anoscan.networks.stages import Stages
from anoscan.report.ranking import RankedImages
from anoscan.scale import ray_scoring
from anoscan.scoring import calibration
from anoscan.scoring.choices import BATCH_SIZE, ScoreRequest
from benchmarks import speed

MEASURED = Path(__file__).parent / "results" / "scale" / "measured.json"
SETS = {"28x28 PNG": 320, "640x640 grey JPEG at 128": 128}  # of `speed.SETS`: images to measure
TRAINED = {"images_shown": 320, "rotation_images_shown": 64, "encoder_images_shown": 64}
OBJECTS, FETCHED = 1000, 200
WHOLE = 32  # images of a training step, as by default
PARTS = {28: (1, 4, 32), 64: (1, 4, 32), 128: (1, 4), 256: (1, 2)}  # images of one process
STAGES = ("gan", "rotation", "encoder", "reconstruction")


def seconds(work: Callable[[], object], clock: Callable[[], float] = time.process_time) -> float:
    """Return the seconds that a piece of work takes, by default of the processor."""
    start = clock()
    work()
    return clock() - start


def held(make: Callable[[], object]) -> tuple[int, int]:
    """Return the bytes that what is made takes, and the most that making it took."""
    gc.collect()
    tracemalloc.start()
    made = make()
    gc.collect()
    now, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    del made
    return now, peak


def rounded(values: Sequence[float]) -> list[float]:
    """Sort values, and keep four digits of them."""
    return [float(f"{value:.4g}") for value in sorted(values)]


# --- scoring ------------------------------------------------------------------------------------


def measure_set(name: str, folder: Path) -> tuple[dict[str, Any], list[ImageScore]]:
    """Measure decoding, networks and judging of a set with a model of a short training."""
    which = dataclasses.replace(speed.SETS[name], count=SETS[name])
    normal, queries = speed.write(which, folder)
    path = folder / "m.safetensors"
    settings = TRAINED | {"reconstruction_images_shown": 64} | which.settings
    detector = Detector.train(normal, path=path, workers=1, device="cpu", **settings)
    files, judge, request = find([queries]), detector._judge, ScoreRequest()
    levels, wanted = judge.levels(request), Wanted(score=request.score)
    decoding, networks, judging = [], [], []
    results: list[ImageScore] = []
    wanted = dataclasses.replace(wanted, level=levels.region)
    for start in range(0, len(files), BATCH_SIZE):
        images: list[Any] = []
        for file in files[start : start + BATCH_SIZE]:
            began = time.process_time()
            images.append(decode_one(file, judge._rule))
            decoding.append(time.process_time() - began)
        began = time.process_time()
        seen = judge._seen(images, request.inversion)
        between = time.process_time()
        found = judge.judge(judge._measure(*seen, wanted), levels)
        networks.append((between - began) / len(images))
        judging.append((time.process_time() - between) / len(images))
        results += found
    return {
        "bytes": rounded([file.file.stat().st_size for file in files]),
        "decode_s": rounded(decoding),
        "networks_s": rounded(networks),  # an image, of batches
        "judge_s": rounded(judging),
    }, results


def measure_storage() -> dict[str, Any]:
    """Measure listing and fetching of small objects by s3fs, in seconds of this process."""
    import fsspec

    with _object_server():
        system = fsspec.filesystem("s3", skip_instance_cache=False)
        system.makedirs("set", exist_ok=True)
        content = bytes(700)  # nothing decodes it
        root = "s3://set/2026/camera-07"
        system.pipe({f"set/2026/camera-07/{n:012}.png": content for n in range(OBJECTS)})
        find([root])  # imports what listing needs
        listing = [seconds(lambda: find([root])) for _ in range(10)]
        now, peak = [held(lambda: find([root])) for _ in range(2)][1]  # the first imports

        def without_cache() -> list[ImageFile]:
            found = find([root])
            for each in list(type(system)._cache.values()):
                each.invalidate_cache()
            return found

        bare, _ = held(without_cache)
        files = find([root])
        fetching = []
        for file in files[:FETCHED]:
            source = file.source._replace(version=None)  # type: ignore[attr-defined]

            def fetch(source: storage.RemoteFile = source) -> None:
                with storage.copied(source):
                    pass

            fetching.append(seconds(fetch))
    item = len(pickle.dumps(ray_scoring._absolute(files[:512]))) / 512
    return {
        "list_1000_s": rounded([took * 1000 / OBJECTS for took in listing]),
        "listed_bytes": round(now / OBJECTS),
        "listed_bytes_without_cache": round(bare / OBJECTS),
        "listing_peak_bytes": round(peak / OBJECTS),
        "item_bytes": round(item),
        "fetch_s": rounded(fetching),
    }


@contextmanager
def _object_server() -> Iterator[None]:
    port = "45123"
    given = {"AWS_ACCESS_KEY_ID": "benchmark", "AWS_SECRET_ACCESS_KEY": "benchmark"}
    os.environ |= given | {"AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}"}
    quiet: dict[str, Any] = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    server = subprocess.Popen([sys.executable, "-m", "moto.server", "-p", port], **quiet)
    try:
        time.sleep(5)
        yield
    finally:
        server.terminate()
        server.wait()


# --- the driver ---------------------------------------------------------------------------------


def measure_driver(results: Sequence[ImageScore], folder: Path) -> dict[str, Any]:
    """Measure what the driver computes and keeps for an image, and ranks of many images."""

    def many(count: int) -> Iterator[ImageScore]:
        rng = np.random.default_rng(0)
        scores, p = rng.normal(size=count), rng.integers(1, 602, count) / 601
        for number in range(count):
            yield dataclasses.replace(
                results[number % len(results)],
                path=f"s3://set/2026/camera-07/{number:012}.png",
                score=float(scores[number]),
                p_value=float(p[number]),
            )

    def ranked(count: int) -> RankedImages:
        images = RankedImages()
        for image in many(count):
            images.add(image)
        return images

    shard = list(many(512))
    pickled = pickle.dumps(shard)

    def merge() -> None:
        images = RankedImages()
        for image in pickle.loads(pickled):
            images.add(image)

    ranks = []
    for count in (100_000, 1_000_000):
        images = ranked(count)
        p = np.random.default_rng(0).integers(1, 602, count) / 601
        ranks.append(
            {
                "images": count,
                "rank_s": seconds(images.rank),
                "q_values_s": seconds(lambda p=p: calibration.q_values(p)),  # type: ignore[misc]
                "q_values_bytes": round(held(lambda p=p: calibration.q_values(p))[1] / count),  # type: ignore[misc]
            }
        )
    kept = held(lambda: ranked(10_000))[0] / 10_000
    images = ranked(10_000)
    parquet = folder / "part.parquet"
    written = [seconds(lambda: ray_scoring._write(parquet, shard)) for _ in range(10)]
    return {
        "result_bytes": round(len(pickled) / 512),
        "kept_bytes": round(kept),
        "image_score_bytes": round(held(lambda: list(many(10_000)))[0] / 10_000),
        "rank_bytes": round(held(images.rank)[1] / 10_000),
        "merge_512_s": rounded([seconds(merge) for _ in range(20)]),
        "shard_512_s": rounded(written[1:]),
        "parquet_bytes": round(parquet.stat().st_size / 512),
        "ranks": ranks,
    }


def measure_blocks(blocks: int) -> dict[str, Any]:
    """Measure what Ray Data needs for a block that holds nothing to do."""
    import ray

    class Idle:
        def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
            return batch

    with ray_scoring._cluster(1):

        def run(count: int) -> None:
            items = [{"number": number} for number in range(count)]
            made = ray.data.from_items(items, override_num_blocks=count)
            for _ in made.map_batches(Idle, batch_size=1, concurrency=1, num_cpus=1).iter_rows():
                pass

        run(4)
        few = seconds(lambda: run(50), time.perf_counter)
        many = seconds(lambda: run(50 + blocks), time.perf_counter)
    return {"blocks": blocks, "block_s": float(f"{(many - few) / blocks:.3g}")}


# --- training -----------------------------------------------------------------------------------


class _Operators(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts operators, each of which starts at least one piece of work on a GPU."""

    count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += 1
        return func(*args, **(kwargs or {}))


def measure_training(side: int) -> dict[str, Any]:
    """Measure steps of each stage as one of several processes takes them, without the others."""
    config = TrainConfig(size=side, channels=1, architecture=architecture_for(side))
    left = {name: value for name, value in decided(config).items() if getattr(config, name) is None}
    config = dataclasses.replace(config, **left)
    networks = fresh_networks(config, ImageRule(size=side, channels=1, window=None))
    pixels = np.random.default_rng(0).uniform(-1, 1, (64, 1, side, side)).astype(np.float32)
    runtime = Runtime(torch.device("cpu"), "float32", 1)
    stages = Stages(pixels, np.arange(64), config, runtime, few=True)
    makers: dict[str, Callable[[], Any]] = {
        "gan": lambda: stages.gan(networks),
        "rotation": lambda: stages.rotation(networks.discriminator),
        "encoder": lambda: stages.encoder(networks),
        "reconstruction": lambda: stages.reconstruction(networks),
    }
    found = {}
    for name in STAGES:
        planned = makers[name]()
        found[name] = {"steps": planned.steps} | _stage(planned, PARTS[side])
    millions = {
        name: sum(p.numel() for p in getattr(networks, name).parameters()) / 1e6
        for name in ("generator", "discriminator", "encoder")
    }
    return {"architecture": config.architecture, "millions": millions, "stages": found}


def _stage(planned: Any, parts: Sequence[int]) -> dict[str, Any]:
    stage, whole = planned.stage, planned.images_per_step
    factor = whole // WHOLE
    last = planned.steps // 8 * 8 - 8  # growing networks have their full size near the end
    sent: list[int] = []

    def counted(x: torch.Tensor) -> torch.Tensor:
        sent.append(x.numel() * x.element_size())
        return x

    taken: dict[str, list[float]] = {}
    real, shares.sum_up = shares.sum_up, counted
    try:
        for part in parts:
            size = max(2, WHOLE // part)
            with shares.taking(shares.Share(0, size, part * size * factor)):
                stage.step(last + 1)
                # The penalty of real images comes in every eighth step, here the first.
                times = [seconds(lambda i=i: stage.step(last + i)) for i in range(4)]  # type: ignore[misc]
            taken[str(part)] = [float(f"{took:.4g}") for took in (times[0], *times[1:])]
        with shares.taking(shares.Share(0, 8, whole)):
            sent.clear()
            with _Operators() as operators:  # type: ignore[no-untyped-call]
                stage.step(last + 1)
    finally:
        shares.sum_up = real
    exchanged = {"exchanges": len(sent), "bytes": sum(sent), "largest": max(sent, default=0)}
    return {"seconds": taken, "operators": operators.count, **exchanged}


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure the parts that are named, and keep them beside the others."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--parts", default="scoring,storage,training,ray")
    parser.add_argument("--blocks", type=int, default=400)
    given = parser.parse_args(arguments)
    torch.set_num_threads(1)
    known = json.loads(MEASURED.read_text()) if MEASURED.exists() else {}
    processor = Path("/proc/cpuinfo").read_text(encoding="utf-8").partition("model name")[2]
    known["processor"] = processor.partition("\n")[0].strip("\t :")
    with tempfile.TemporaryDirectory() as name:
        if "scoring" in given.parts:
            known["sets"] = {}
            for which in SETS:
                folder = Path(name) / str(len(known["sets"]))
                folder.mkdir()
                known["sets"][which], results = measure_set(which, folder)
            known["driver"] = measure_driver(results, Path(name))
        if "storage" in given.parts:
            known["storage"] = measure_storage()
        if "training" in given.parts:
            known["training"] = {str(side): measure_training(side) for side in PARTS}
        if "ray" in given.parts:
            known["ray"] = measure_blocks(given.blocks)
    MEASURED.write_text(json.dumps(known, indent=1, sort_keys=True) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
