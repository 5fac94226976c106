"""False alarms of models of few images are set beside what chance allows."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from benchmarks import cells, few
from benchmarks.cells import Cell


def test_alarms_stand_beside_what_an_exact_and_a_drawn_rate_allow(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cells, "RESULTS", tmp_path)
    called = np.arange(1000) < 130
    images = {"train": 200, "test_normal": 1000, "test_anomalous": 9000}
    found = few._kept(50, 0.1, called) | {"recall": 0.876, "auroc": 0.9, "images": images}
    cells.keep(Cell("few/mnist", "2.first200", 1, few.METHOD), found, "command")
    row = few.table().splitlines()[-1]
    cell = "mnist 2.first200, 1 | 200, 50 | 10% | 88% | 130 of 1,000 | 82 to 119 | 32 to 195"
    assert row == f"| {cell} | 0.900 |"


def test_the_interval_of_an_exact_rate_leaves_out_a_fortieth_at_each_end() -> None:
    low, high = few._kept(50, 0.1, np.zeros(1000, dtype=bool))["interval95"]
    alarms = np.random.default_rng(0).binomial(1000, 0.1, size=100_000)
    assert 0.015 < np.mean(alarms < low) <= 0.025
    assert 0.015 < np.mean(alarms > high) <= 0.025
