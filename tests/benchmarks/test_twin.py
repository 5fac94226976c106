"""The figures of reconstructions, on reconstructions whose figures are known."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks.twin import FIGURES, Planted, figures, fine, of_pca

Images = np.ndarray


@pytest.fixture(scope="module")
def images() -> Images:
    """Images (40, 1, 32, 32) of smooth gradients and a little noise."""
    rng = np.random.default_rng(0)
    line = np.linspace(-1, 1, 32)
    a, b = rng.uniform(-0.4, 0.4, (2, 40, 1, 1))
    smooth = a * line[:, None] + b * line
    return (smooth + rng.normal(0, 0.01, smooth.shape))[:, None].astype(np.float32)


def test_a_copy_misses_nothing_and_heals_nothing(images: Images) -> None:
    mean = images.mean(0, keepdims=True)
    found = figures(lambda x: x, mean, images, (images, np.arange(40) % 2 == 0))
    assert found.keys() == FIGURES.keys()
    assert (found["error"], found["left"], found["left_share"]) == (0, 1, 1)
    assert found["sharpness"] == 1


def test_the_mean_image_is_the_unit_of_the_error_and_has_no_detail(images: Images) -> None:
    mean = images.mean(0, keepdims=True)
    found = figures(lambda x: mean.repeat(len(x), 0), mean, images, (images, np.arange(40) < 20))
    assert found["error"] == pytest.approx(1)
    assert found["sharpness"] < 0.1


def test_the_clean_image_is_healed_and_its_residual_is_the_defect(images: Images) -> None:
    planted = Planted(images, seed=0, shares=True)
    assert planted.left(planted.clean) == 0
    auroc, aupro = planted.pixels(planted.clean)
    assert auroc > 0.9
    assert aupro > 0.5
    assert all(mask.any() and not mask.all() for mask in planted.masks)


def test_pca_knows_gradients_and_follows_defects_the_more_components_it_has(
    images: Images,
) -> None:
    planted = Planted(images, seed=0, shares=True)
    few, many = of_pca(images, 2), of_pca(images, 30)
    assert planted.left(few(planted.changed)) < planted.left(many(planted.changed))
    assert np.square(few(images) - images).mean() < 0.001


def test_white_noise_has_most_of_its_power_in_the_upper_half() -> None:
    noise = np.random.default_rng(0).normal(size=(4, 1, 32, 32)).astype(np.float32)
    smooth = np.zeros((4, 1, 32, 32), np.float32) + np.linspace(0, 1, 32, dtype=np.float32)
    whole = float(np.square(np.abs(np.fft.fft2(noise))).sum())
    assert 0.7 < fine(noise) / whole < 0.9
    assert fine(smooth - smooth.mean()) < 0.2 * float(np.square(np.abs(np.fft.fft2(smooth))).sum())
