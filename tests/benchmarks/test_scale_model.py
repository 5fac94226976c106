"""The estimates of large runs, on steps whose estimates are known."""

from __future__ import annotations

import copy
import dataclasses
import itertools
from typing import Any

import numpy as np
import pytest

from anoscan.scoring import calibration
from benchmarks.scale_model import (
    MENDED,
    RESOURCES,
    TODAY,
    Scoring,
    driver_memory,
    makespan,
    q_values_of_counts,
)
from benchmarks.scale_training import ASSUMED, training, waiting

CALM = dataclasses.replace(ASSUMED, slow=0, lost_hours=1e12, failed=0)
MEASURED: dict[str, Any] = {
    "sets": {
        "small": {
            "bytes": [1000, 3000],
            "decode_s": [0.001, 0.003],
            "networks_s": [0.004, 0.006],
            "judge_s": [0.001, 0.001],
        }
    },
    "storage": {
        "fetch_s": [0.001, 0.003],
        "list_1000_s": [0.1, 0.14],
        "item_bytes": 200,
        "listed_bytes": 2000,
    },
    "driver": {
        "merge_512_s": [0.003, 0.003],
        "shard_512_s": [0.008, 0.008],
        "kept_bytes": 300,
        "rank_bytes": 70,
        "ranks": [{"images": 10**6, "rank_s": 0.4, "q_values_s": 0.1, "q_values_bytes": 40}],
    },
    "ray": {"block_s": 0.009},
    "training": {
        "28": {
            "architecture": "dcgan",
            "stages": {
                "gan": {
                    "steps": 500,
                    "seconds": {"1": [0.02, 0.01, 0.011, 0.013], "4": [0.05, 0.03, 0.031, 0.029]},
                    "operators": 1000,
                    "exchanges": 10,
                    "bytes": 3_000_000,
                }
            },
        }
    },
}
IMAGES = 1_000_000
LISTING = IMAGES / 1000 * (0.12 + CALM.latency_s)
RANKING = 0.5


def test_one_worker_takes_the_sum_of_its_steps() -> None:
    found = Scoring(MEASURED, "small", TODAY, CALM).seconds(IMAGES, 1)
    # Means of fetching, decoding, networks and judging, which one core does in turn.
    each = 0.002 + 0.002 + 0.005 + 0.001
    assert found == pytest.approx(CALM.start_s + LISTING + RANKING + IMAGES * each, rel=0.01)


def test_more_workers_take_no_longer_until_the_storage_gives_no_more() -> None:
    model = Scoring(MEASURED, "small", TODAY, CALM)
    times = [model.seconds(IMAGES, 2**power) for power in range(9)]
    fixed = CALM.start_s + LISTING + RANKING
    floor = fixed + IMAGES / CALM.requests_s
    for fewer, more in itertools.pairwise(times):
        assert more <= 1.01 * fewer
    # 100 images a second and worker: 55 workers ask for 5,500 images a second.
    for workers, took in zip((2, 8, 32), (times[1], times[3], times[5]), strict=True):
        assert took - fixed == pytest.approx(IMAGES * 0.01 / workers, rel=0.05)
    assert times[8] == pytest.approx(floor, rel=0.02)
    assert all(took >= floor for took in times)


def test_a_run_is_seeded() -> None:
    model = Scoring(MEASURED, "small")
    assert model.seconds(IMAGES, 64, seed=3) == model.seconds(IMAGES, 64, seed=3)
    assert model.seconds(IMAGES, 8, seed=3) != model.seconds(IMAGES, 8, seed=4)


def planted(resource: str) -> tuple[dict[str, Any], Any]:
    """Return steps and assumptions under which a resource limits a run of 16 workers."""
    measured = copy.deepcopy(MEASURED)
    small = measured["sets"]["small"]
    named = {"decode": "decode_s", "networks": "networks_s", "judging": "judge_s"}
    if resource in named:
        small[named[resource]] = [0.1, 0.3]
    elif resource == "bandwidth":
        small["bytes"] = [1e8, 2e8]
    elif resource == "fetch":
        measured["storage"]["fetch_s"] = [0.1, 0.3]
    elif resource == "listing":
        measured["storage"]["list_1000_s"] = [50, 70]
    elif resource == "driver":
        measured["ray"]["block_s"] = 20
    elif resource == "ranking":
        measured["driver"]["ranks"][0]["rank_s"] = 1e6
    changes: dict[str, dict[str, float]] = {
        "latency": {"latency_s": 20, "latency_p99_s": 40},
        "requests": {"requests_s": 20},
        "stragglers": {"slow": 0.999, "slow_factor": 50},
    }
    return measured, dataclasses.replace(CALM, **changes.get(resource, {}))


@pytest.mark.parametrize("resource", RESOURCES)
def test_the_bottleneck_is_the_resource_that_was_made_slow(resource: str) -> None:
    measured, assumed = planted(resource)
    found = Scoring(measured, "small", TODAY, assumed).estimate(IMAGES, 16)
    assert found.bottleneck == resource
    assert found.saved[resource] > 0.5
    assert sum(share for name, share in found.saved.items() if name != resource) < 0.5


def test_a_heavy_tail_takes_longer_than_its_mean() -> None:
    even, tailed = np.full(256, 1.0), np.full(256, 0.5)
    tailed[:8] = 16.5  # the same mean
    assert tailed.mean() == even.mean()
    took = [makespan(256, 64, library, {}, CALM, "", 0) for library in (even, tailed)]
    assert took[0] == pytest.approx(4)
    assert took[1] > 4 * took[0]


def test_lost_workers_cost_time() -> None:
    library = np.full(8, 10.0)
    fragile = dataclasses.replace(CALM, lost_hours=0.1)
    calm, lossy = (makespan(5000, 8, library, {}, each, "", 0) for each in (CALM, fragile))
    # 139 losses are expected in 50,000 seconds, and each costs 60 seconds and half a shard.
    assert lossy - calm == pytest.approx(139 * 65 / 8, rel=0.3)


def test_costs_are_of_hours_and_requests() -> None:
    found = Scoring(MEASURED, "small", TODAY, CALM).estimate(IMAGES, 8)
    assert found.compute_price == pytest.approx(found.seconds / 3600 * 8 * 0.05)
    assert found.request_price == pytest.approx(1000 * 0.0004 + 0.005)


def test_the_driver_keeps_all_images_unless_it_adds_up_counts() -> None:
    growth = driver_memory(MEASURED, 2 * IMAGES, TODAY) - driver_memory(MEASURED, IMAGES, TODAY)
    assert growth == IMAGES * (2000 + 2 * 200 + 300 + 70 + 40)
    assert driver_memory(MEASURED, 10**10, MENDED) < 3e9


def test_q_values_need_only_counts_of_p_values() -> None:
    rng = np.random.default_rng(0)
    held_out = rng.normal(size=60)
    shards = [rng.normal(shift, 1, 500) for shift in (0, 0.3, 2)]
    p = calibration.p_values(np.concatenate(shards), held_out)
    places = [
        np.rint(calibration.p_values(shard, held_out) * 61).astype(int) - 1 for shard in shards
    ]
    counts = np.sum([np.bincount(place, minlength=61) for place in places], axis=0)
    by_count = q_values_of_counts(counts)[np.concatenate(places)]
    assert np.array_equal(by_count, calibration.q_values(p))


def test_counts_of_billions_stay_exact() -> None:
    counts = np.full(601, 10**10)
    assert q_values_of_counts(counts) == pytest.approx(np.ones(601))


def test_the_slowest_of_many_processes_is_waited_for() -> None:
    assert waiting(MEASURED, 1) == pytest.approx(1, abs=0.02)
    assert waiting(MEASURED, 1) < waiting(MEASURED, 8) <= waiting(MEASURED, 64)


@pytest.mark.parametrize(
    ("bottleneck", "gpus", "changes"),
    [
        ("computing", 1, {"gpu_factor": 0.01}),
        ("starting operators", 8, {"launch_s": 1e-3}),
        ("exchanges", 8, {"near_s": 1.0}),
        ("exchanges", 8, {"near_bandwidth": 1e6}),
        ("exchanges", 64, {"far_s": 1.0}),
    ],
)
def test_the_bottleneck_of_a_training_is_what_was_made_slow(
    bottleneck: str, gpus: int, changes: dict[str, float]
) -> None:
    assumed = dataclasses.replace(ASSUMED, **changes)
    found = training(MEASURED, "28", gpus, 64, assumed)
    assert found["bottleneck"] == bottleneck
    assert found["seconds"] > training(MEASURED, "28", gpus, 64)["seconds"]
