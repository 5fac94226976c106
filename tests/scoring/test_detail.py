"""Maps see places with less or more fine detail than normal images have."""

from __future__ import annotations

import numpy as np
import torch
from scipy import ndimage
from sklearn.metrics import roc_auc_score

from anoscan.networks.architectures import Shape, build, dcgan
from anoscan.scoring import detail, maps
from anoscan.scoring.measure import fit_terms
from anoscan.scoring.terms import Evidence

SIDE = 64


def textures(n: int, seed: int) -> torch.Tensor:
    """Return images (n, 1, SIDE, SIDE) of smoothed noise, in [-1, 1]."""
    noise = np.random.default_rng(seed).normal(0, 1, (n, 1, SIDE, SIDE))
    rough = ndimage.gaussian_filter(noise, 0.7, axes=(2, 3), mode="wrap")
    return torch.from_numpy(rough.astype(np.float32)).clip(-1, 1)


def test_energies_are_of_detail_alone() -> None:
    flat = torch.full((2, 1, 32, 32), 0.5)
    assert len(detail.energies(flat)) == 2
    assert all(energy.max() < 1e-12 for energy in detail.energies(flat))
    point = torch.zeros(1, 3, 16, 16)
    point[0, 0, 8, 5] = 1
    for energy in detail.energies(point):
        assert energy.shape == (1, 16, 16)
        assert energy.argmax() == 8 * 16 + 5


def test_a_small_place_out_of_focus_is_found_in_a_texture() -> None:
    torch.manual_seed(0)
    networks = build(dcgan.ENTRY, Shape(SIDE, 1, 8, 4)).frozen()
    training, held_out = textures(64, 0), textures(48, 1)
    terms = fit_terms(networks, ["local"], [training])
    fitted = maps.fit(networks, terms, lambda: [training], lambda: [held_out], align=False)
    queries, mask = textures(12, 2), np.zeros((SIDE, SIDE), np.bool_)
    mask[24:36, 30:42] = True
    soft = ndimage.gaussian_filter(queries.numpy(), 1.5, axes=(2, 3))
    x = torch.where(torch.from_numpy(mask), torch.from_numpy(soft), queries)
    found = fitted.measure(Evidence(networks, x))
    truth = np.broadcast_to(mask, found.shape)
    assert roc_auc_score(truth.ravel(), found.ravel()) > 0.95
