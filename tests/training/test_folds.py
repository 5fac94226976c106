from __future__ import annotations

import numpy as np
import pytest

from anoscan.cli.tables import render
from anoscan.core.config import TrainConfig
from anoscan.core.errors import UsageError
from anoscan.detector import Detector
from anoscan.networks.loop import Batches
from anoscan.training import folds as module
from tests.conftest import Digits


def test_every_image_calibrates_and_none_is_measured_by_what_learned_from_it(
    few: Digits,
    tmp_path_factory: pytest.TempPathFactory,
    quick: dict[str, int],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    learned: list[set[int]] = []
    measured: list[set[int]] = []

    class Watched(module.Folds):
        def _trained(self, number, rows):  # type: ignore[no-untyped-def]
            learned.append(set(rows.tolist()))
            return super()._trained(number, rows)

        def _measured(self, networks, names, rows, inside):  # type: ignore[no-untyped-def]
            assert set(rows.tolist()) == learned[-1]
            measured.append(set(inside.tolist()))
            return super()._measured(networks, names, rows, inside)

    seen: dict[str, set[int]] = {}
    build = Batches.__init__

    def watch(self, pixels, rows, size, seed, name, device):  # type: ignore[no-untyped-def]
        seen[name] = set(np.asarray(rows).tolist())
        build(self, pixels, rows, size, seed, name, device)

    monkeypatch.setattr("anoscan.training.train_networks.Folds", Watched)
    monkeypatch.setattr(Batches, "__init__", watch)
    path = tmp_path_factory.mktemp("folds") / "folds.safetensors"
    settings = quick | {"rotation_images_shown": 64, "workers": 1}
    detector = Detector.train(few.normal, path=path, calibration_folds=3, **settings)
    facts = detector.model.metadata["training_data"]
    assert (facts["trained"], facts["held_out"]) == (90, 30)
    assert len(detector.model.calibration.terms) == 120
    assert len(detector.model.calibration.region_peaks) == 30
    assert detector.threshold().calibration_images == 120
    assert sorted(map(len, measured)) == [30, 30, 30]
    assert len(set.union(*measured)) == 90
    for number, (rows, inside) in enumerate(zip(learned, measured, strict=True)):
        assert not rows & inside
        assert len(rows) == 60
        assert seen[f"encoder-fold{number}"] == rows
    assert detector.report is not None
    seconds = detector.report.seconds
    assert {"calibration", "folds"} <= set(seconds)
    assert sum(seconds.values()) == pytest.approx(2 * seconds["total"])
    assert "s of them for calibration in folds" in " ".join(map(str, render(detector.report)))
    assert Detector.load(path).model.config.calibration_folds == 3
    assert np.isfinite(detector.score(few.queries).images[0].score)


def test_folds_are_for_whole_images_and_at_least_two() -> None:
    with pytest.raises(UsageError, match="does not go with --patches"):
        TrainConfig(patches=100, calibration_folds=5)
    with pytest.raises(UsageError, match="--calibration-folds must be from 2 to 100"):
        TrainConfig(calibration_folds=1)
