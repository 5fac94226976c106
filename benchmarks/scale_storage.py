"""Measure how fast images are listed and fetched from storages, and scored on Ray.

``python -m benchmarks.scale storage IMAGES --model MODEL`` takes a folder of images and a trained
model. The object server is moto's, in a process of this computer: it says what anoscan adds, not
what a network takes.
"""

from __future__ import annotations

import argparse
import logging
import os
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from anoscan.core import storage
from anoscan.detector import Detector
from anoscan.images.files import find
from anoscan.scale.ray_scoring import RayScoring


def main(arguments: Sequence[str] | None = None) -> None:
    """Print one row a measurement."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("images", type=Path)
    parser.add_argument("--model", required=True)
    parser.add_argument("--count", type=int, default=2000, help="so many images of the folder")
    parser.add_argument("--remote-count", type=int, default=500, help="so many in the storages")
    parser.add_argument("--parts", default="ray,memory,s3")
    given = parser.parse_args(arguments)
    local = sorted(given.images.rglob("*.png"))[: given.count]
    detector = Detector.load(given.model, device="cpu")
    if "memory" in given.parts:
        measure_storage("memory", detector, local[: given.remote_count])
    if "s3" in given.parts:
        measure_s3(detector, local[: given.remote_count])
    if "ray" in given.parts:
        measure_ray(detector, local)


def measure_storage(scheme: str, detector: Detector, local: Sequence[Path]) -> None:
    """Measure listing, fetching and scoring of files that are put into a storage first."""
    import fsspec

    system = fsspec.filesystem(scheme)
    root = "anoscan-benchmark/set"
    system.makedirs("anoscan-benchmark", exist_ok=True)
    for file in local:
        system.pipe(f"{root}/{file.name}", file.read_bytes())
    start = time.perf_counter()
    found = [source for _, source in storage.below(f"{scheme}://{root}")]
    row(f"{scheme}: list", len(found), time.perf_counter() - start)

    def fetch(source: storage.RemoteFile) -> None:
        with storage.copied(source._replace(version=None)):
            pass

    start = time.perf_counter()
    with ThreadPoolExecutor(storage.THREADS) as threads:
        list(threads.map(fetch, found))
    row(f"{scheme}: fetch", len(found), time.perf_counter() - start)
    start = time.perf_counter()
    report = detector.score(f"{scheme}://{root}")
    row(f"{scheme}: list, fetch and score", report.counts["scored"], time.perf_counter() - start)
    start = time.perf_counter()
    detector.score_files(find([str(file) for file in local]))
    row("the same files here: score", len(local), time.perf_counter() - start)


def measure_s3(detector: Detector, local: Sequence[Path]) -> None:
    """Measure a storage that moto's server plays."""
    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    os.environ |= {
        "AWS_ENDPOINT_URL": f"http://{host}:{port}",
        "AWS_ACCESS_KEY_ID": "benchmark",
        "AWS_SECRET_ACCESS_KEY": "benchmark",
    }
    try:
        measure_storage("s3", detector, local)
    finally:
        server.stop()


def measure_ray(detector: Detector, local: Sequence[Path]) -> None:
    """Measure scoring here and on Ray, with the start of the cluster and without."""
    import ray

    files = find([str(file) for file in local])
    start = time.perf_counter()
    expected = detector.score_files(files)
    row("engine local", len(files), time.perf_counter() - start)
    for workers in (1, 2):
        start = time.perf_counter()
        ray.init(
            address="local",
            num_cpus=workers,
            object_store_memory=200 * 2**20,
            include_dashboard=False,
            log_to_driver=False,
        )
        row(f"engine ray, {workers} workers: start of the cluster", 0, time.perf_counter() - start)
        times: list[float] = []

        def on_progress(progress: object, times: list[float] = times) -> None:
            times.append(time.perf_counter())

        start = time.perf_counter()
        found = detector.score_files(files, on_progress=on_progress, elsewhere=RayScoring())
        end = time.perf_counter()
        row(f"engine ray, {workers} workers: until the first shard", 0, times[0] - start)
        row(f"engine ray, {workers} workers: all", len(files), end - start)
        ray.shutdown()
        assert found == expected, "the results differ"


def row(name: str, images: int, seconds: float) -> None:
    """Print a measurement."""
    rate = f"{images / seconds:10,.0f} images/s" if images else ""
    print(f"{name:45} {seconds:8.2f} s {rate}", flush=True)


if __name__ == "__main__":
    main()
