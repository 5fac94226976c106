"""What the linear subspace of normal images leaves of an image's pixels."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from anoscan.core.config import TrainConfig
from anoscan.detector import Detector
from anoscan.images.decode import ImageRule, decode
from anoscan.images.files import find
from anoscan.model.model import fresh_networks
from anoscan.model.patch_test import term_weights
from anoscan.scoring import layers
from anoscan.scoring.maps import Maps
from anoscan.scoring.measure import Measurer, fit_terms
from anoscan.scoring.terms import Evidence, subspace
from tests.conftest import Digits

PARTS = 12  # that pictures are made of
RULE = ImageRule(size=32, channels=1, window=None)
NETWORKS = fresh_networks(TrainConfig(size=32, channels=1, latent_dim=4, width=8), RULE)


def pictures(n: int, seed: int, channels: int = 1, side: int = 64) -> Tensor:
    """Random mixtures of the same smooth parts, and a little noise."""
    shared = torch.Generator().manual_seed(99)
    coarse = torch.randn(PARTS, channels, 4, 4, generator=shared)
    parts = torch.nn.functional.interpolate(coarse, size=(side, side), mode="bilinear")
    generator = torch.Generator().manual_seed(seed)
    weights = torch.randn(n, PARTS, generator=generator)
    mixed = torch.einsum("np,pcij->ncij", weights, parts) / PARTS
    return mixed + 0.02 * torch.randn(n, channels, side, side, generator=generator)


def fitted(x: Tensor) -> dict[str, Tensor]:
    part = len(x) // 3
    first, second = subspace.sums(evidence(x[:part])), subspace.sums(evidence(x[part:]))
    return subspace.fit({name: first[name] + second[name] for name in first})


def evidence(x: Tensor) -> Evidence:
    return Evidence(NETWORKS, x)


@pytest.mark.parametrize(("channels", "side"), [(1, 28), (1, 64), (3, 41)])
def test_unseen_pictures_are_explained_and_a_change_of_them_is_found_where_it_is(
    channels: int, side: int
) -> None:
    found = fitted(pictures(300, 0, channels, side))
    clean = pictures(20, 1, channels, side)
    usual = subspace.residual(evidence(clean), found)
    assert usual.shape == (20, side, side)
    assert 0.9 < usual.mean() < 2
    changed = clean.clone()
    changed[:, :, 10:13, 20:23] += 0.2  # a tenth of the contrast of the pictures' range
    left = subspace.residual(evidence(changed), found)
    for one in left:
        row, column = np.unravel_index(int(one.argmax()), one.shape)
        assert 9 <= row <= 13
        assert 19 <= column <= 23
    assert left.amax((1, 2)).min() > 2 * usual.amax((1, 2)).max()


def test_the_basis_is_that_of_principal_components() -> None:
    x = pictures(400, 0, side=28)
    basis = fitted(x)["basis"].float()
    assert basis.shape == (28 * 28, 100)
    torch.testing.assert_close(basis.T @ basis, torch.eye(100), atol=5e-3, rtol=0)
    rows = x.flatten(1) - x.flatten(1).mean(0)
    best = torch.linalg.svd(rows, full_matrices=False).Vh[:PARTS]
    inside = (best @ basis).square().sum(1)
    assert inside.min() > 0.999


def test_large_images_are_averaged_down_first() -> None:
    x = pictures(60, 0, side=128)
    found = fitted(x)
    assert len(found["mean"]) == subspace.SIDE**2
    assert subspace.residual(evidence(x[:2]), found).shape == (2, subspace.SIDE, subspace.SIDE)


def test_an_image_has_the_same_residual_in_any_company() -> None:
    found = fitted(pictures(60, 0))
    some = pictures(5, 1)
    alone = torch.cat([subspace.residual(evidence(x[None]), found) for x in some])
    torch.testing.assert_close(subspace.residual(evidence(some), found), alone, rtol=1e-9, atol=0)


@pytest.mark.parametrize("n", [1, 3, 20])
def test_few_images_and_images_that_never_differ_give_numbers(n: int) -> None:
    for x in (pictures(n, 0, side=16), torch.zeros(n, 1, 16, 16)):
        found = subspace.fit(subspace.sums(evidence(x)))
        assert found["basis"].shape[1] <= n // subspace.IMAGES_A_COMPONENT
        assert torch.isfinite(subspace.residual(evidence(pictures(2, 1, side=16)), found)).all()


def test_the_term_sees_a_defect_of_few_pixels_and_no_other_exposure() -> None:
    found = fitted(pictures(200, 0))
    clean = pictures(10, 1)
    changed = clean.clone()
    changed[:, :, 4:6, 4:6] += 0.3
    usual = subspace.measure(evidence(clean), found)
    assert (subspace.measure(evidence(changed), found) / usual).min() > 1.5
    assert (subspace.measure(evidence(1.1 * clean), found) / usual).max() < 1.5


@pytest.mark.parametrize(("side", "counts"), [(32, False), (64, True)])
def test_the_term_counts_from_64_pixels_on(side: int, counts: bool) -> None:
    config = TrainConfig(size=side, channels=1, latent_dim=4, width=8)
    rule = ImageRule(size=side, channels=1, window=None)
    networks = fresh_networks(config, rule).frozen()
    train, seen = (pictures(n, n, side=side) for n in (120, 30))
    found = fit_terms(networks, ["subspace"], [train])
    measurer = Measurer(networks, found, rule)
    clean = measurer.measure(seen)
    (weight,) = term_weights(measurer, seen.numpy(), clean.terms, clean.weights, 0)
    assert (weight > 0.5) == counts


def test_maps_of_aligned_images_know_pixels_and_are_relative_to_their_image(
    trained: Detector,
) -> None:
    made = trained.model.maps
    assert made.aligned
    assert not any(name.startswith("subspace") for name in made.stored())
    described = made.described()
    again = Maps.restored(made.stored(), described, trained.model.fitted)
    assert described["relative"]
    assert again.aligned
    assert again.tensors.keys() == made.tensors.keys()


def test_layers_of_relative_maps_are_nought_in_the_calmest_quarter(
    trained: Detector, digits: Digits
) -> None:
    model = trained.model
    some = [decode(file, model.rule).pixels for file in find([digits.queries])[:5]]
    x = torch.from_numpy(np.stack(some))
    with torch.no_grad():
        seen = Evidence(model.networks, x)
    for some_layers in layers.layers_of(seen, model.maps.tensors, aligned=True):
        below = (some_layers <= 0).float().mean((2, 3))
        torch.testing.assert_close(below, torch.full_like(below, layers.CALM), rtol=0, atol=0.1)


def test_what_all_of_an_image_has_does_not_show_in_a_relative_map() -> None:
    some = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    relative = some - layers._calm(some)
    torch.testing.assert_close(some + 5 - layers._calm(some + 5), relative, atol=1e-5, rtol=0)
