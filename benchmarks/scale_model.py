"""Estimate time, cost and bottleneck of large runs from measured steps, by simulation.

``python -m benchmarks.scale model`` prints the tables of docs/scale-costs.md. Measured steps come
from `benchmarks.scale_measure`. Everything that was not measured is a field of `Assumed`.

Scoring is simulated shard by shard: free workers take shards, and each shard is also served by the
storage and by the driver, which serve one after the other. The bottleneck of a run is the resource
whose time, taken as zero, shortens the same run most.
"""

from __future__ import annotations

import argparse
import dataclasses
import heapq
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median

import numpy as np

from anoscan.core import storage
from anoscan.scale.ray_scoring import _BATCHES, _SHARDS_AN_ACTOR
from anoscan.scoring.choices import BATCH_SIZE
from benchmarks import markdown
from benchmarks.scale_measure import MEASURED
from benchmarks.scale_training import ASSUMED, Assumed, Measured, duration, training_table

Floats = np.ndarray
IMAGES, WORKERS = (10**6, 10**8, 10**10), (1, 8, 64, 1024)
RESOURCES = (
    *("listing", "latency", "bandwidth", "fetch", "decode", "networks", "judging"),
    *("requests", "driver", "ranking", "stragglers"),
)
_LIBRARY, _DRAWN, _CHUNKS, _RUNS = 256, 32, 8, 5


@dataclass(frozen=True)
class Layout:
    """How a scoring is organised: as it is (`TODAY`), or with the mends of docs/scale-costs.md.

    Parameters
    ----------
    packed : int
        Images that one request fetches.
    shard : int, optional
        Images of a shard; by default as `RayScoring` has it.
    listers : int
        Processes that list at the same time.
    gathered : bool
        Whether the driver keeps, writes and ranks all results. Else it adds up counts of p-values.
    gpu : bool
        Whether each worker has a GPU, of which only the networks make use.
    """

    packed: int = 1
    shard: int | None = None
    listers: int = 1
    gathered: bool = True
    gpu: bool = False


TODAY = Layout()
MENDED = Layout(packed=512, shard=8192, listers=64, gathered=False)


@dataclass(frozen=True)
class Estimate:
    """What a run takes and costs, and the memory that its driver needs.

    `saved` is the share of the time that goes where a resource takes no time, by its name.
    """

    seconds: float
    worker_hours: float
    compute_price: float
    request_price: float
    driver_bytes: float
    saved: Mapping[str, float]

    @property
    def bottleneck(self) -> str:
        """The resource whose time, taken as zero, shortens the run most."""
        return max(self.saved, key=self.saved.__getitem__)


def drawn(sample: Sequence[float], shape: tuple[int, ...], rng: np.random.Generator) -> Floats:
    """Draw from a measured distribution, whose `sample` is sorted."""
    places = np.linspace(0, 1, len(sample))
    found: Floats = np.interp(rng.random(shape), places, sample)
    return found


def makespan(
    shards: int,
    workers: int,
    library: Floats,
    service: Mapping[str, float],
    assumed: Assumed,
    free: str,
    seed: int,
) -> float:
    """Simulate the workers, and return the seconds until all is done.

    `service` are the seconds of a shard at the storage and at the driver, which serve one shard
    after the other. Shards are taken in chunks, which become smaller until they are single shards,
    so the end of the run has the tail of single shards.
    """
    sizes, left = list[int](), shards
    while left:
        sizes.append(max(1, left // (_CHUNKS * workers)))
        left -= sizes[-1]
    rng = np.random.default_rng(seed)
    count = np.minimum(sizes, _DRAWN)
    mask = np.arange(_DRAWN) < count[:, None]
    picked = library[rng.integers(0, len(library), mask.shape)]
    durations = (picked * mask).sum(1) / count * sizes
    slow = np.where(rng.random(workers) < assumed.slow, assumed.slow_factor, 1.0)
    lost = rng.poisson(durations / (assumed.lost_hours * 3600))
    again = lost * (assumed.restart_s + library.mean() / 2)
    if free == "stragglers":
        slow, again = np.ones(workers), again * 0
    heap = [(0.0, worker) for worker in range(workers)]
    served, end = dict.fromkeys(service, 0.0), 0.0
    for number, size in enumerate(sizes):
        start, worker = heapq.heappop(heap)
        done = start + durations[number] * slow[worker] + again[number]
        for name, each in service.items():
            served[name] = max(served[name], start) + size * each
            done = max(done, served[name])
        end = max(end, done)
        heapq.heappush(heap, (done, worker))
    return float(end)


@dataclass(frozen=True, eq=False)
class Scoring:
    """Estimates scorings of a measured set of images, organised in one layout."""

    measured: Measured
    name: str
    layout: Layout = TODAY
    assumed: Assumed = ASSUMED
    _libraries: dict[str, Floats] = field(default_factory=dict)

    def shard_size(self, images: int, workers: int) -> int:
        """Return the images of a shard, as `RayScoring` has them unless the layout says it."""
        most = max(1, math.ceil(images / (_SHARDS_AN_ACTOR * workers * BATCH_SIZE)))
        if self.layout.shard is None:
            return BATCH_SIZE * min(_BATCHES, most)
        return min(self.layout.shard, BATCH_SIZE * most)

    def image_seconds(self, free: str) -> Floats:
        """Draw the seconds of a worker for an image, many times, as means of 512 images each."""
        if free not in self._libraries:
            self._libraries[free] = self._drawn(free)
        return self._libraries[free]

    def _drawn(self, free: str) -> Floats:
        rng, shape = np.random.default_rng(1), (_LIBRARY, 512)
        which, layout, assumed = self.measured["sets"][self.name], self.layout, self.assumed

        def of(resource: str, values: Floats) -> Floats:
            return values * (resource != free)

        spread = math.log(assumed.latency_p99_s / assumed.latency_s) / 2.326
        waited = assumed.latency_s * np.exp(spread * rng.standard_normal(shape))
        waited += (rng.random(shape) < assumed.failed) * (waited + storage.WAITS[0])
        sent = of("bandwidth", drawn(which["bytes"], shape, rng)) / assumed.bandwidth
        fetching = of("fetch", drawn(self.measured["storage"]["fetch_s"], shape, rng))
        core = of("decode", drawn(which["decode_s"], shape, rng)) + fetching / layout.packed
        networks = of("networks", drawn(which["networks_s"], shape, rng))
        core += of("judging", drawn(which["judge_s"], shape, rng))
        waits = of("latency", waited).mean(1) / storage.THREADS / layout.packed
        busy = core.mean(1) + (0 if layout.gpu else networks.mean(1))
        gpu = networks.mean(1) / assumed.gpu_factor
        found: Floats = np.maximum.reduce([busy, gpu, np.maximum(waits, sent.mean(1))])
        return found

    def seconds(self, images: int, workers: int, free: str = "", seed: int = 0) -> float:
        """Simulate a run, in which the resource `free` takes no time."""
        size, layout, assumed = self.shard_size(images, workers), self.layout, self.assumed
        driver = self.measured["driver"]
        merged = (np.mean(driver["merge_512_s"]) + np.mean(driver["shard_512_s"])) * size / 512
        service = {
            "requests": size / layout.packed / (assumed.requests_s * assumed.prefixes),
            "driver": self.measured["ray"]["block_s"] + float(merged) * layout.gathered,
        }
        service = {which: each for which, each in service.items() if which != free}
        library = size * self.image_seconds(free)
        shards = math.ceil(images / size)
        total = assumed.start_s + makespan(shards, workers, library, service, assumed, free, seed)
        if free != "listing":
            listed = np.mean(self.measured["storage"]["list_1000_s"]) + assumed.latency_s
            total += images / layout.packed / 1000 * float(listed) / layout.listers
        if free != "ranking" and layout.gathered:
            last = driver["ranks"][-1]
            each = (last["rank_s"] + last["q_values_s"]) / last["images"] / math.log(last["images"])
            total += each * images * math.log(images)
        return total

    def estimate(self, images: int, workers: int) -> Estimate:
        """Estimate a run: medians of several simulations, and what limits it."""

        def took(free: str = "") -> float:
            return median(self.seconds(images, workers, free, seed) for seed in range(_RUNS))

        seconds, assumed = took(), self.assumed
        saved = {resource: 1 - took(resource) / seconds for resource in RESOURCES}
        hours = seconds / 3600 * workers
        price = assumed.gpu_price if self.layout.gpu else assumed.core_price
        requests = images / self.layout.packed / 1000
        asked = requests * assumed.gets_price + requests / 1000 * assumed.lists_price
        memory = driver_memory(self.measured, images, self.layout)
        return Estimate(seconds, hours, hours * price, asked, memory, saved)


def driver_memory(measured: Measured, images: int, layout: Layout) -> float:
    """Return the bytes that the driver needs: its list of files, their shards, and the results."""
    driver, kept = measured["driver"], measured["storage"]
    if not layout.gathered:
        return 1e9 + images / (layout.shard or 512) * 1000
    shards = 2 * kept["item_bytes"]  # pickled, in the list and in Ray's store
    each = kept["listed_bytes"] + shards + driver["kept_bytes"] + driver["rank_bytes"]
    return float(1e9 + images * (each + driver["ranks"][-1]["q_values_bytes"]))


def q_values_of_counts(counts: np.ndarray) -> Floats:
    """Return the q-value of each p-value (k + 1) / n from the number of images that have it.

    With n - 1 calibration images, p-values are (1 + k) / n with k from 0 to n - 1. So the `counts`
    (n,) hold everything of them, and shards only need to be added up.
    """
    p = np.arange(1, len(counts) + 1) / len(counts)
    below = np.cumsum(counts)
    adjusted = np.minimum(p * below[-1] / np.maximum(below, 1), 1)
    found: Floats = np.minimum.accumulate(adjusted[::-1])[::-1]
    return found


# --- tables -------------------------------------------------------------------------------------


def scoring_table(measured: Measured, name: str, layout: Layout, assumed: Assumed) -> str:
    """Return a table with a row for each number of images and workers."""
    titles = ["images", "workers", "time", "worker-hours", "workers, $", "requests, $"]
    titles += ["driver, GB", "bottleneck"]
    rows, model = [], Scoring(measured, name, layout, assumed)
    for images in IMAGES:
        for workers in WORKERS:
            found = model.estimate(images, workers)
            fits = found.driver_bytes <= assumed.driver_bytes
            kept = float(f"{found.driver_bytes / 1e9:.3g}")
            memory = f"{kept:,g}" + ("" if fits else " (too much)")
            limit = f"{found.bottleneck} ({100 * found.saved[found.bottleneck]:.0f} %)"
            prices = [f"{price:,.2f}" for price in (found.compute_price, found.request_price)]
            row = [f"{images:,}", f"{workers:,}", duration(found.seconds)]
            rows.append([*row, f"{found.worker_hours:,.0f}", *prices, memory, limit])
    return markdown.table(titles, rows)


def main(arguments: Sequence[str] | None = None) -> None:
    """Print all tables; each field of `Assumed` is an option."""
    parser = argparse.ArgumentParser(description=__doc__)
    for each in dataclasses.fields(Assumed):
        name = "--" + each.name.replace("_", "-")
        parser.add_argument(name, type=type(each.default), default=each.default)
    assumed = Assumed(**vars(parser.parse_args(arguments)))
    measured = json.loads(MEASURED.read_text(encoding="utf-8"))
    layouts = {"as it is": TODAY, "on GPUs": Layout(gpu=True), "with the mends": MENDED}
    texts = {"Training": training_table(measured, assumed)}
    for name in measured["sets"]:
        for how, layout in layouts.items():
            texts[f"{name}, {how}"] = scoring_table(measured, name, layout, assumed)
    print(markdown.headed(texts))


if __name__ == "__main__":
    main()
