"""Results of many images are ranked in little memory."""

from __future__ import annotations

import dataclasses
import tracemalloc

import numpy as np
import pytest

from anoscan.cli.commands.score import memory_warning
from anoscan.core.results import ImageScore, Neighbour, Region, to_json
from anoscan.report.ranking import RankedImages
from anoscan.scoring.calibration import q_values

TERMS = ("pixel", "feature", "latent", "density", "local", "prototype", "subspace")
REGION = Region(x=1, y=2, width=3, height=4, score=5.5, area=6, p_value=0.5)


def image(number: int, score: float, **more: object) -> ImageScore:
    some = ImageScore(
        rank=None,
        path=f"images/{number:07}.png",
        score=score,
        p_value=1 / (1 + number),
        q_value=None,
        verdict="anomalous" if score > 1 else "normal",
        terms=dict.fromkeys(TERMS, number / 3),
        regions=(),
        residual=None,
        percentiles=dict.fromkeys(reversed(TERMS), number / 7),
    )
    return dataclasses.replace(some, **more)  # type: ignore[arg-type]


def test_ranked_images_are_those_that_were_added_with_ranks_and_q_values() -> None:
    given = [
        image(3, 0.5),
        image(2, 0.5, regions=(REGION,), mismatch=("its size",)),
        image(9, 7.25, residual="r.png", nearest=(Neighbour(path="n", distance=0.5),)),
        image(4, -1.5, maps={"npy": "m.npy"}),
    ]
    images = RankedImages()
    for one in given:
        images.add(one)
    images.rank()
    expected = [given[2], given[1], given[0], given[3]]
    q = q_values(np.array([one.p_value for one in expected]))
    expected = [
        dataclasses.replace(one, rank=rank, q_value=float(value))
        for rank, (one, value) in enumerate(zip(expected, q, strict=True), start=1)
    ]
    assert list(images) == expected
    assert images == tuple(expected)
    assert images != expected[:3]
    assert images[:] is images
    assert images[1:3] == tuple(expected[1:3])
    assert images[-1] == expected[-1]
    assert to_json(images) == [to_json(one) for one in expected]
    with pytest.raises(IndexError):
        images[4]
    assert "4" in repr(images)


def test_an_image_takes_less_than_250_bytes_beside_its_path() -> None:
    images, some = RankedImages(), [image(number, number / 7) for number in range(5000)]
    tracemalloc.start()
    for one in some:
        images.add(one)
    images.rank()
    used, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert used < 250 * len(some)


def test_a_million_images_fit_into_2_gigabytes_and_more_are_warned_of() -> None:
    assert memory_warning(1_000_000, [], 0) is None
    assert memory_warning(1_000_000, ["residuals"], 0) is None
    warning = memory_warning(2_000_000, [], 0)
    assert warning is not None
    assert "2,000,000 images takes about 2.4 GB" in warning
    assert "--jsonl and --csv" in warning
    assert memory_warning(1_000_000, ["report"], 0)
    assert memory_warning(1_000_000, ["maps"], 5)
