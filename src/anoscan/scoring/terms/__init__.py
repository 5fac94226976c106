"""The terms of the anomaly score, one file each; a higher value is more anomalous.

A term is fitted to sums over normal training images, so one pass over a folder of any size fits all
terms. It then measures how far a query differs from these images.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from anoscan.networks.architectures import Discriminator, Networks
from anoscan.networks.augmentation import quarter_turns

Tensors = dict[str, Tensor]
ROWS = "rows"  # name of the sum whose batches are joined, where those of other sums are added up


@dataclass(frozen=True)
class Evidence:
    """A batch of images and the outputs of the networks for it, all float32.

    Parameters
    ----------
    x, x_hat : Tensor of shape (n, c, s, s)
        The images, in [-1, 1], and their reconstructions G(z).
    z : Tensor of shape (n, d)
        The latents, which are E(x) or the result of a search.
    features, features_hat : list of Tensor of shape (n, c_i, s_i, s_i)
        The outputs of the discriminator's blocks for x and for x_hat, finest first.
    rotations : Tensor of shape (n, 4, 4)
        The logits of the four rotations. Row k is for the image rotated by k * 90 degrees.
    """

    x: Tensor
    x_hat: Tensor
    z: Tensor
    features: list[Tensor]
    features_hat: list[Tensor]
    rotations: Tensor


def gather(networks: Networks, x: Tensor, z: Tensor) -> Evidence:
    """Run the networks on images (n, c, s, s) in [-1, 1] and their latents (n, d)."""
    x_hat = networks.generator(z)
    discriminator = networks.discriminator
    features = discriminator.features(x)
    rotations = rotation_logits(discriminator, x, features)
    return Evidence(x, x_hat, z, features, discriminator.features(x_hat), rotations)


def rotation_logits(discriminator: Discriminator, x: Tensor, features: list[Tensor]) -> Tensor:
    """Compute the logits (n, 4, 4) of the rotation; row k is for x rotated by k * 90 degrees.

    Parameters
    ----------
    discriminator : Discriminator
        The discriminator, with its rotation head.
    x : Tensor of shape (n, c, s, s)
        The images, in [-1, 1].
    features : list of Tensor
        The features of the unrotated `x`, which are not computed again.
    """
    rotated = [discriminator.rotation(discriminator.features(y)) for y in quarter_turns(x)[1:]]
    return torch.stack([discriminator.rotation(features), *rotated], 1)


def no_sums(evidence: Evidence) -> Tensors:
    """Return no sums, for a term whose formula has no statistics of training images."""
    return {}


def as_summed(total: Tensors) -> Tensors:
    """Return the total sums as they are, for a term whose `measure` needs no others."""
    return total


@dataclass(frozen=True)
class Term:
    """One term of the score.

    Parameters
    ----------
    measure : callable
        Takes evidence and fitted statistics. It returns a number for each image, (n,) float64,
        positive, where higher is more anomalous.
    paper : str
        The paper that the term comes from.
    sums : callable
        Takes evidence of training images and returns sums over those images. The sums of batches
        are added up, but `ROWS` (n, p) are joined.
    fit : callable
        Takes the total sums and returns the statistics that `measure` needs. The model stores them.
    weight : callable, optional
        Takes evidence of normal images and returns (n,). The mean over held-out normals, clipped
        to [0, 1], is the weight of the term. So a task that was hardly learned counts little.
        Without this function, the patch test sets the weight; see `model.patch_test`.
    narrow : bool
        Whether the term can find only small defects. The weight is then exactly what the patch
        test measures, because that test uses small defects.
    needs_latent : bool
        Whether the term depends on z or G(z). Otherwise it depends on the image alone.
    of_patches : bool
        Whether models of patches have the term. A term that compares the same place of different
        images means nothing for patches, which come from anywhere in their images.
    least_side : int
        The smallest side of the images, in pixels, at which the term counts. For smaller images
        it is shown only.
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
    """Return the count, the sum (d,) and the sum of outer products (d, d) of vectors (n, d)."""
    v = vectors.double()
    return {"count": v.new_tensor(float(len(v))), "sum": v.sum(0), "outer": v.T @ v}


def fit_gaussian(sums: Tensors, shrinkage: float) -> Tensors:
    """Fit the mean and the whitening matrix of a Gaussian to `gaussian_sums`.

    The covariance is that of standardised coordinates, shrunk towards the identity. So directions
    in which the training images hardly differ do not decide the distance.

    Parameters
    ----------
    sums : dict
        The total of `gaussian_sums` over all training images.
    shrinkage : float in [0, 1]
        The share of the identity in the shrunk covariance.

    Returns
    -------
    dict with ``mean`` (d,) and ``whiten`` (d, d), float32
        |(v - mean) @ whiten|^2 is the squared Mahalanobis distance of v.
    """
    mean = sums["sum"] / sums["count"]
    covariance = sums["outer"] / sums["count"] - torch.outer(mean, mean)
    variance = covariance.diagonal().clamp_min(0)
    # The added constants prevent a division by zero for a constant coordinate (a dead channel).
    scale = (variance + 1e-4 * variance.mean() + 1e-12).sqrt()
    correlation = covariance / torch.outer(scale, scale)
    eye = torch.eye(len(mean), dtype=mean.dtype, device=mean.device)
    factor = torch.linalg.cholesky((1 - shrinkage) * correlation + shrinkage * eye)
    whiten = torch.linalg.solve_triangular(factor, eye, upper=False).T / scale[:, None]
    return {"mean": mean.float(), "whiten": whiten.float()}


def mahalanobis(vectors: Tensor, fitted: Tensors) -> Tensor:
    """Return the mean squared whitened coordinate (n,), float64, about 1 for normal images.

    This is the squared Mahalanobis distance of vectors (n, d), divided by d.
    """
    centred = vectors.double() - fitted["mean"].double()
    return (centred @ fitted["whiten"].double()).square().mean(1)
