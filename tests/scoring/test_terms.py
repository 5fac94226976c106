from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from anoscan.core.arrays import evenly
from anoscan.core.config import TrainConfig
from anoscan.core.runtime import random_stream
from anoscan.images.decode import ImageRule
from anoscan.model.model import fresh_networks
from anoscan.model.patch_test import term_weights
from anoscan.scoring import fitting
from anoscan.scoring.measure import Measurer, chunks, fit_terms
from anoscan.scoring.terms import Evidence, local
from anoscan.training.train_networks import _certainty

CONFIG = TrainConfig(size=32, channels=1, latent_dim=4, width=8)
RULE = ImageRule(size=32, channels=1, window=None)
NETWORKS = fresh_networks(CONFIG, RULE)


def blocks(x: Tensor) -> Evidence:
    """Evidence whose blocks are the images themselves at three resolutions."""
    pooled = [torch.nn.functional.avg_pool2d(x, size) for size in (1, 2, 4)]
    return Evidence(NETWORKS, x, features=pooled)


def noise(n: int, seed: int = 0, channels: int = 3, side: int = 16) -> Tensor:
    return torch.randn(n, channels, side, side, generator=torch.Generator().manual_seed(seed))


def distances(x: Tensor, fitted: dict[str, Tensor]) -> Tensor:
    """Distances of the places of the finest block."""
    return local.distances(blocks(x), x, fitted["mean0"], fitted["whiten0"])


def test_local_distance_is_one_for_usual_places_and_counts_channels_that_move_together() -> None:
    x = noise(2000)
    x[:, 1] = x[:, 0] + 0.1 * x[:, 1]
    fitted = local.fit(local.sums(blocks(x)))
    assert distances(x, fitted).mean() == pytest.approx(1, 0.1)
    # Far in each channel, but together as always, is less odd than apart.
    together, apart = x[:1] * 0, x[:1] * 0
    together[:, 0] = together[:, 1] = 2
    apart[:, 0], apart[:, 1] = 2, -2
    far = [distances(y, fitted).mean() for y in (together, apart)]
    assert far[1] > 5 * far[0]


def test_local_knows_what_is_usual_at_each_place() -> None:
    x = noise(400)
    x[:, :, :8] += 10
    fitted = local.fit(local.sums(blocks(x)))
    normal, swapped = noise(50, 1), noise(50, 1)
    normal[:, :, :8] += 10
    swapped[:, :, 8:] += 10
    assert distances(swapped, fitted).mean() > 5 * distances(normal, fitted).mean()


def test_local_sees_a_small_defect_that_the_mean_over_the_image_does_not() -> None:
    fitted = local.fit(local.sums(blocks(noise(400))))
    clean, marked = noise(50, 1), noise(50, 1)
    marked[:, :, 5:7, 5:7] += 4
    gain = local.measure(blocks(marked), fitted) / local.measure(blocks(clean), fitted)
    assert gain.min() > 1.5


def test_local_sums_of_batches_add_up() -> None:
    x = noise(20)
    whole = local.sums(blocks(x))
    halves = local.sums(blocks(x[:7])), local.sums(blocks(x[7:]))
    for key, value in whole.items():
        torch.testing.assert_close(halves[0][key] + halves[1][key], value)


def test_local_survives_channels_that_never_move() -> None:
    x = noise(30)
    x[:, 2] = 0
    fitted = local.fit(local.sums(blocks(x)))
    assert torch.isfinite(local.measure(blocks(noise(5)), fitted)).all()


def test_large_maps_are_averaged_down_to_a_bounded_model() -> None:
    side = local.places(torch.zeros(1, 256, 128, 128)).shape[1]
    assert side**2 * 256**2 <= local.LARGEST


def images(n: int, seed: int) -> np.ndarray:
    """Smooth gradients, so that a patch from elsewhere shows."""
    random = np.random.default_rng(seed)
    ramp = np.linspace(-0.8, 0.8, 32)[:, None] + np.zeros((32, 32))
    return (ramp + random.normal(0, 0.02, (n, 1, 32, 32))).astype(np.float32)


def weights(seen: np.ndarray, *terms: str) -> dict[str, float]:
    networks = fresh_networks(CONFIG, RULE).frozen()
    device = torch.device("cpu")
    train = images(200, 0)
    fitted = fit_terms(networks, list(terms), chunks(np.arange(200), train.__getitem__, device))
    measurer = Measurer(networks, fitted, RULE)
    measured = [
        measurer.measure(batch) for batch in chunks(np.arange(len(seen)), seen.__getitem__, device)
    ]
    clean = np.concatenate([m.terms for m in measured])
    own = np.concatenate([m.weights for m in measured])
    return dict(zip(fitted, term_weights(measurer, seen, clean, own, 0), strict=True))


def test_terms_are_fitted_to_a_limited_number_of_images(monkeypatch: pytest.MonkeyPatch) -> None:
    networks, device = fresh_networks(CONFIG, RULE).frozen(), torch.device("cpu")
    pixels, rows = images(40, 0), np.arange(40)

    def means(rows: np.ndarray) -> dict[str, Tensor]:
        fitted, _ = fitting.fit_all(networks, ["density", "latent"], pixels, rows, 0, device)
        return {name: stats["mean"] for name, stats in fitted.items()}

    of_all, of_some, of_few = means(rows), means(evenly(rows, 20)), means(evenly(rows, 10))
    monkeypatch.setattr(fitting, "MOST", 20)
    monkeypatch.setattr(fitting, "MOST_RECONSTRUCTED", 10)
    limited = means(rows)
    assert torch.equal(limited["density"], of_some["density"])
    assert torch.equal(limited["latent"], of_few["latent"])
    assert not torch.equal(limited["density"], of_all["density"])


def test_a_term_that_sees_pasted_patches_gets_weight_and_one_that_cannot_gets_none() -> None:
    found = weights(images(60, 1), "local", "rotation")
    assert found["local"] > 0.8
    # Random weights name turns by chance: rotation has a trust of its own.
    assert found["rotation"] < 0.3


def test_a_narrow_term_is_trusted_no_further_than_it_told_patches(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seen = images(60, 1) + np.random.default_rng(2).normal(0, 0.3, (60, 1, 32, 32))
    seen = seen.astype(np.float32)
    narrow = weights(seen, "local")["local"]
    monkeypatch.setattr(local, "ENTRY", replace(local.ENTRY, narrow=False))
    assert 0.1 < narrow < 0.9
    assert weights(seen, "local")["local"] == pytest.approx(narrow**0.5)


def test_nothing_is_trusted_where_patches_change_nothing() -> None:
    found = weights(np.zeros((20, 1, 32, 32), np.float32), "local", "density")
    assert found == {"local": 0, "density": 0}


def test_turns_of_images_without_a_way_up_are_not_learned() -> None:
    networks = fresh_networks(CONFIG, RULE)
    x = torch.randn(40, 1, 32, 32, generator=random_stream(0, "noise"))
    assert _certainty(networks.discriminator, [x]) < 0.5
