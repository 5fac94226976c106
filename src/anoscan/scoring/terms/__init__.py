"""The terms of the anomaly score, one file each; a higher value is more anomalous.

A term is fitted to sums over normal training images, so one pass over a folder of any size fits all
terms. It then measures how far a query differs from these images.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from anoscan.core.tensors import Like
from anoscan.networks.architectures import Discriminator, Networks
from anoscan.networks.augmentation import quarter_turns

Tensors = dict[str, Tensor]
Forms = dict[str, Like]
ROWS = "rows"  # name of the sum whose batches are joined, where those of other sums are added up


class Evidence:
    """A batch of images, and the outputs of the networks for it, all float32.

    A network runs when its output is first asked for. So what no term needs costs nothing.

    Parameters
    ----------
    networks : Networks
    x : Tensor of shape (n, c, s, s)
        The images, in [-1, 1].
    outputs : Tensor or list of Tensor
        Outputs that are known, by the names of the properties; no network computes them.
    """

    def __init__(
        self, networks: Networks, x: Tensor, **outputs: Tensor | list[Tensor] | None
    ) -> None:
        self._networks, self.x = networks, x
        # A cached property that is set already is never computed.
        vars(self).update({name: value for name, value in outputs.items() if value is not None})
        self._known: dict[Hashable, Tensor] = {}

    def once(self, key: Hashable, compute: Callable[[], Tensor]) -> Tensor:
        """Return what `compute` returned when it was first called for this key.

        A term and the anomaly maps share distances this way.
        """
        if key not in self._known:
            self._known[key] = compute()
        return self._known[key]

    @cached_property
    def z(self) -> Tensor:
        """Latents (n, d), which are E(x) or the result of a search."""
        latents: Tensor = self._networks.encoder(self.x)
        return latents

    @cached_property
    def x_hat(self) -> Tensor:
        """Reconstructions (n, c, s, s), in [-1, 1]; see `Networks.reconstruct`."""
        return self._networks.reconstruct(self.x, self.z)

    @cached_property
    def features(self) -> list[Tensor]:
        """Outputs (n, c_i, s_i, s_i) of the discriminator's blocks for x, finest first."""
        return self._networks.discriminator.features(self.x)

    @cached_property
    def features_hat(self) -> list[Tensor]:
        """Outputs of the discriminator's blocks for the reconstructions, finest first."""
        return self._networks.discriminator.features(self.x_hat)

    @cached_property
    def rotations(self) -> Tensor:
        """Logits (n, 4, 4) of the rotation; row k is for x rotated by k * 90 degrees."""
        return rotation_logits(self._networks.discriminator, self.x, self.features)

    @cached_property
    def backbone(self) -> list[Tensor]:
        """Maps (n, c_i, s_i, s_i) of the pretrained network, finest first; empty without one."""
        network = self._networks.backbone
        return [] if network is None else network.features(self.x)

    @cached_property
    def mirrored(self) -> list[Tensor]:
        """Maps of the pretrained network like `backbone`, of mirror images."""
        network = self._networks.backbone
        return [] if network is None else network.features(self.x.flip(-1))


def rotation_logits(discriminator: Discriminator, x: Tensor, features: list[Tensor]) -> Tensor:
    """Compute the logits (n, 4, 4) of the rotation; row k is for x rotated by k * 90 degrees.

    `features` are those of the unrotated images `x`, which are not computed again.
    """
    rotated = [discriminator.rotation(discriminator.features(y)) for y in quarter_turns(x)[1:]]
    return torch.stack([discriminator.rotation(features), *rotated], 1)


def no_sums(evidence: Evidence) -> Tensors:
    """Return no sums, for a term whose formula has no statistics of training images."""
    return {}


def as_summed(total: Tensors) -> Tensors:
    """Return the total sums as they are, for a term whose `measure` needs no others."""
    return total


def no_forms(evidence: Evidence) -> Forms:
    """Return no tensors, for a term that stores none."""
    return {}


@dataclass(frozen=True)
class Term:
    """One term of the score.

    Parameters
    ----------
    measure : callable
        Takes evidence and fitted statistics, and returns a positive number for each image, (n,)
        float64.
    paper : str
    sums : callable
        Takes evidence of training images and returns sums over them. `ROWS` (n, p) are joined where
        other sums are added up.
    fit : callable
        Takes the total sums and returns the statistics that `measure` needs and the model stores.
    forms : callable
        Takes evidence of any one image and returns what the result of `fit` must be like. Loaded
        models are checked by it.
    on_components : callable, optional
        Takes the ``mean`` and ``components`` of `Baselines` and the coordinates (n, k) of training
        images, and returns what the model stores. `measure` finds both among its statistics; see
        `scoring.fitting`. It takes the place of `sums` and `fit`.
    factor : callable, optional
        Takes the fitted statistics and the side of images in pixels, and returns a number in
        [0, 1] that lowers the weight.
    weight : callable, optional
        Takes evidence of normal images and returns (n,). Its mean over held-out normals, clipped to
        [0, 1], is the term's weight, so that a task that was hardly learned counts little. Without
        this function, the patch test sets the weight; see `model.patch_test`.
    least_weight : float in [0, 1]
        The weight is no lower, whatever the patch test says; `factor` may still lower it.
    unless : tuple of str
        Names of terms that take this one's place where one counts; see `model.patch_test`.
    narrow : bool
        Whether the term can find only small defects. The weight is then exactly what the patch test
        measures, because that test uses small defects.
    needs_latent : bool
        Whether the term depends on z or G(z), and not on the image alone.
    of_backbone : bool
        Whether the term needs the features of a pretrained network.
    of_patches : bool
        Whether models of patches have the term. Comparing the same place of different images means
        nothing for patches, which come from anywhere in their images.
    least_side : int
        The smallest side of images, in pixels, at which the term is not only shown but counts.
    """

    measure: Callable[[Evidence, Tensors], Tensor]
    paper: str
    sums: Callable[[Evidence], Tensors] = no_sums
    fit: Callable[[Tensors], Tensors] = as_summed
    forms: Callable[[Evidence], Forms] = no_forms
    on_components: Callable[[Tensors, Tensor], Tensors] | None = None
    factor: Callable[[Tensors, int], float] | None = None
    weight: Callable[[Evidence], Tensor] | None = None
    least_weight: float = 0.0
    unless: tuple[str, ...] = ()
    narrow: bool = False
    needs_latent: bool = True
    of_backbone: bool = False
    of_patches: bool = True
    least_side: int = 0


def gaussian_sums(vectors: Tensor) -> Tensors:
    """Return the count, the sum (d,) and the sum of outer products (d, d) of vectors (n, d)."""
    v = vectors.double()
    return {"count": v.new_tensor(float(len(v))), "sum": v.sum(0), "outer": v.T @ v}


def fit_gaussian(sums: Tensors, shrinkage: float) -> Tensors:
    """Fit the mean and the whitening matrix of a Gaussian to the total of `gaussian_sums`.

    The covariance of standardised coordinates is shrunk towards the identity, whose share is
    `shrinkage`, in [0, 1]. So directions in which training images hardly differ do not decide the
    distance.

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


def gaussian_forms(length: int) -> Forms:
    """Return what the result of `fit_gaussian` for vectors of a length is like."""
    return {"mean": Like((length,)), "whiten": Like((length, length))}


def mahalanobis(vectors: Tensor, fitted: Tensors) -> Tensor:
    """Return the squared Mahalanobis distances (n,) of vectors (n, d), divided by d, float64.

    They are about 1 for normal images.
    """
    centred = vectors.float() - fitted["mean"]
    return (centred @ fitted["whiten"]).double().square().mean(1)


def gaussian_term(
    vectors: Callable[[Evidence], Tensor], shrinkage: float, paper: str, **about: Any
) -> Term:
    """Make a term: the Mahalanobis distance of an image's vector from those of normal images.

    `vectors` returns the vectors (n, d) of images. `about` are parameters of `Term`.
    """

    def measure(evidence: Evidence, fitted: Tensors) -> Tensor:
        return mahalanobis(vectors(evidence), fitted)

    def sums(evidence: Evidence) -> Tensors:
        return gaussian_sums(vectors(evidence))

    def fit(total: Tensors) -> Tensors:
        return fit_gaussian(total, shrinkage)

    def forms(evidence: Evidence) -> Forms:
        return gaussian_forms(vectors(evidence).shape[1])

    return Term(measure, paper, **{"sums": sums, "fit": fit, "forms": forms} | about)
