"""What an anomaly score is made of: one file a term, each a number that grows with oddness.

A term learns what is usual from sums over normal training images, so that one pass over a folder
of any size fits all terms; it then measures a query against them. Higher is more anomalous.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from anoscan.networks.architectures import Discriminator, Networks
from anoscan.networks.augmentation import quarter_turns

Tensors = dict[str, Tensor]
ROWS = "rows"  # among sums: what is joined, image after image, where the rest is added up


@dataclass(frozen=True)
class Evidence:
    """What the networks say of a batch of images, all float32.

    Parameters
    ----------
    x, x_hat : Tensor of shape (n, c, s, s)
        Images, and their reconstructions G(z).
    z : Tensor of shape (n, d)
        E(x), or what a search found.
    features, features_hat : list of Tensor of shape (n, c_i, s_i, s_i)
        Discriminator blocks for x and for x_hat.
    rotations : Tensor of shape (n, 4, 4)
        Logits of the quarter turn; row k is of the image turned k times.
    """

    x: Tensor
    x_hat: Tensor
    z: Tensor
    features: list[Tensor]
    features_hat: list[Tensor]
    rotations: Tensor


def gather(networks: Networks, x: Tensor, z: Tensor) -> Evidence:
    """One pass over images (n, c, s, s) in [-1, 1] and their latents (n, d)."""
    x_hat = networks.generator(z)
    discriminator = networks.discriminator
    features = discriminator.features(x)
    rotations = rotation_logits(discriminator, x, features)
    return Evidence(x, x_hat, z, features, discriminator.features(x_hat), rotations)


def rotation_logits(discriminator: Discriminator, x: Tensor, features: list[Tensor]) -> Tensor:
    """Logits (n, 4, 4) of the quarter turn; row k is of the image turned k times.

    `features` are those of `x` (n, c, s, s) as it is.
    """
    rotated = [discriminator.rotation(discriminator.features(y)) for y in quarter_turns(x)[1:]]
    return torch.stack([discriminator.rotation(features), *rotated], 1)


def no_sums(evidence: Evidence) -> Tensors:
    """Give no sums: the formula of the term has no statistics of training images."""
    return {}


def as_summed(total: Tensors) -> Tensors:
    """Give the total sums as they are: they are all that `Term.measure` needs."""
    return total


@dataclass(frozen=True)
class Term:
    """One term of the score.

    Parameters
    ----------
    measure : callable
        (evidence, fitted) -> (n,) float64, positive, higher is more anomalous.
    paper : str
        Where it comes from.
    sums : callable
        Evidence of training images -> sums over those images; sums of batches are added up, but
        for `ROWS` (n, p), which are joined.
    fit : callable
        Total sums -> what `measure` needs; stored in the model.
    weight : callable, optional
        Evidence of normal images -> (n,); its mean over held-out normals, between 0 and 1, is how
        much the term may count: a task that was hardly learned says little. Without it the
        self-test decides; see `selftest`.
    narrow : bool
        Whether small defects are all that it can see; the self-test, which is one of small
        defects, then says all there is to say of it.
    needs_latent : bool
        Whether z or G(z) plays a part; otherwise the image alone decides.
    of_patches : bool
        Whether images that are parts of larger ones have it: no place of a part has anything to do
        with the same place of another.
    least_side : int
        Pixels a side of the images, under which the term is shown and does not count.
    """

    measure: Callable[[Evidence, Tensors], Tensor]
    paper: str
    sums: Callable[[Evidence], Tensors] = no_sums
    fit: Callable[[Tensors], Tensors] = as_summed
    weight: Callable[[Evidence], Tensor] | None = None
    narrow: bool = False
    needs_latent: bool = True
    of_patches: bool = True
    least_side: int = 0


def gaussian_sums(vectors: Tensor) -> Tensors:
    """Count, sum and outer-product sum of vectors (n, d)."""
    v = vectors.double()
    return {"count": v.new_tensor(float(len(v))), "sum": v.sum(0), "outer": v.T @ v}


def fit_gaussian(sums: Tensors, shrinkage: float) -> Tensors:
    """Mean and whitening matrix of a Gaussian, from `gaussian_sums`.

    The covariance is taken on standardised coordinates and shrunk towards the identity, so that
    directions that the training images hardly show do not decide the distance.

    Returns
    -------
    dict with ``mean`` (d,) and ``whiten`` (d, d), float32:
        |(v - mean) @ whiten|^2 is the squared Mahalanobis distance.
    """
    mean = sums["sum"] / sums["count"]
    covariance = sums["outer"] / sums["count"] - torch.outer(mean, mean)
    variance = covariance.diagonal().clamp_min(0)
    # A coordinate that never moved (a dead channel) would divide by nothing.
    scale = (variance + 1e-4 * variance.mean() + 1e-12).sqrt()
    correlation = covariance / torch.outer(scale, scale)
    eye = torch.eye(len(mean), dtype=mean.dtype, device=mean.device)
    factor = torch.linalg.cholesky((1 - shrinkage) * correlation + shrinkage * eye)
    whiten = torch.linalg.solve_triangular(factor, eye, upper=False).T / scale[:, None]
    return {"mean": mean.float(), "whiten": whiten.float()}


def mahalanobis(vectors: Tensor, fitted: Tensors) -> Tensor:
    """Mean squared whitened coordinate (n,), float64; 1 for a typical normal."""
    centred = vectors.double() - fitted["mean"].double()
    return (centred @ fitted["whiten"].double()).square().mean(1)
