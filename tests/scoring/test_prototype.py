"""How far an image is from the nearest kind of normal images."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score
from torch import Tensor

from anoscan.core.config import TrainConfig
from anoscan.images.decode import ImageRule
from anoscan.model.model import fresh_networks
from anoscan.scoring import measure
from anoscan.scoring.measure import fit_sums, term_sums
from anoscan.scoring.terms import ROWS, Evidence, Tensors, prototype

KINDS = 6
RULE = ImageRule(size=32, channels=1, window=None)
NETWORKS = fresh_networks(TrainConfig(size=32, channels=1, latent_dim=4, width=8), RULE)


def pictures(n: int, seed: int, channels: int = 1, side: int = 28) -> Tensor:
    """Pictures of a few kinds, and noise."""
    shared = torch.Generator().manual_seed(5)
    kinds = torch.rand(KINDS, channels, side, side, generator=shared) - 0.5
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randint(KINDS, (n,), generator=generator)
    return kinds[drawn] + 0.02 * torch.randn(n, channels, side, side, generator=generator)


def evidence(x: Tensor) -> Evidence:
    return Evidence(NETWORKS, x)


def fitted(x: Tensor) -> Tensors:
    return prototype.fit(prototype.sums(evidence(x)))


@pytest.mark.parametrize(("channels", "side"), [(1, 28), (3, 32), (1, 12)])
def test_a_mixture_of_two_kinds_is_no_kind(channels: int, side: int) -> None:
    x = pictures(300, 0, channels, side)
    found = fitted(x)
    new, other = pictures(100, 1, channels, side), pictures(100, 2, channels, side)
    mixed = (new + other) / 2
    different = (new - other).abs().flatten(1).mean(1) > 0.1
    usual = prototype.measure(evidence(new), found)
    odd = prototype.measure(evidence(mixed[different]), found)
    assert usual.dtype == torch.float64
    assert usual.max() < 0.05
    assert odd.min() > 2 * usual.max()


def test_the_distance_from_the_mean_does_not_see_it() -> None:
    # The reason for the term: what lies between kinds is near the mean of all.
    x, new = pictures(300, 0), pictures(100, 1)
    mixed = (new + pictures(100, 2)) / 2
    mean = x.mean(0)
    from_mean = [(y - mean).square().flatten(1).mean(1) for y in (new, mixed)]
    truth = np.repeat([0, 1], 100)
    assert roc_auc_score(truth, torch.cat(from_mean)) < 0.3
    found = fitted(x)
    scores = torch.cat([prototype.measure(evidence(y), found) for y in (new, mixed)])
    assert roc_auc_score(truth, scores) > 0.85


def test_no_image_is_kept_and_a_stranger_vouches_for_nobody() -> None:
    x = pictures(160, 0)
    stranger = torch.flip(x[:1], (2, 3))
    found = fitted(torch.cat([x, stranger]))
    alike = prototype.measure(evidence(stranger), found)
    assert alike.min() > 5 * prototype.measure(evidence(x), found).max()
    coarse = torch.nn.functional.adaptive_avg_pool2d(x, prototype.SIDE).flatten(1)
    inside = (coarse - found["mean"]) @ found["basis"]
    assert torch.cdist(found["prototypes"], inside).min() > 1e-3


def test_batches_and_company_change_nothing() -> None:
    config = TrainConfig(size=28, channels=1, latent_dim=4, width=8)
    networks = fresh_networks(config, ImageRule(size=28, channels=1, window=None)).frozen()
    x = pictures(60, 0)
    whole = term_sums(networks, ["prototype"], [x])
    parts = [term_sums(networks, ["prototype"], [x[:7], x[7:31]])]
    parts.append(term_sums(networks, ["prototype"], [x[31:]]))
    assert torch.equal(torch.cat([part["prototype"][ROWS] for part in parts]), _rows(whole))
    one, two = fit_sums([whole])["prototype"], fit_sums(parts)["prototype"]
    assert all(torch.equal(one[name], two[name]) for name in one)
    new = pictures(5, 1)
    together = prototype.measure(evidence(new), one)
    alone = torch.cat([prototype.measure(evidence(image[None]), one) for image in new])
    assert torch.equal(together, alone)


def _rows(sums: dict[str, Tensors]) -> Tensor:
    return sums["prototype"][ROWS]


@pytest.mark.parametrize("n", [2, 9, 40])
def test_few_images_and_equal_ones_give_finite_numbers(n: int) -> None:
    for x in (pictures(n, 0), torch.full((n, 1, 28, 28), 0.3)):
        found = fitted(x)
        assert torch.isfinite(prototype.measure(evidence(pictures(3, 1)), found)).all()
        assert (prototype.measure(evidence(x), found) > 0).all()


def test_of_very_many_images_some_are_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prototype, "MOST_IMAGES", 50)
    found = fitted(pictures(500, 0))
    assert len(found["prototypes"]) <= 50 // prototype.IMAGES_A_PROTOTYPE
    assert prototype.measure(evidence(pictures(20, 1)), found).max() < 0.05


def test_parts_of_larger_images_have_no_prototypes() -> None:
    assert "prototype" in measure.terms_of(rotated=True, patches=False)
    assert "prototype" not in measure.terms_of(rotated=True, patches=True)
