"""Mahalanobis distance of local discriminator features, at the places where it is highest.

Small defects vanish in any mean over the image. So every place of the feature maps of the three
finest blocks has a Gaussian, fitted to that place of all normal images (PaDiM, Defard et al. 2021,
arXiv 2011.08785, with the GAN's own discriminator). The fewer the images, the more its covariance
is mixed with that of all places, so images that are not aligned lose little.

The value of a block is the mean over the worst hundredth of its places, divided by the square root
of the mean over all. An image that is anomalous everywhere is thus left to ``density``. The term is
the geometric mean over the blocks.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d

from anoscan.core.tensors import Like
from anoscan.core.tracing import recording
from anoscan.scoring.terms import Evidence, Forms, Tensors, Term

BLOCKS = 3  # the finest ones: a place of a coarser block sees most of the image
WORST = 0.01  # share of the places that counts
LEAST_SHARED = 0.02  # least share of all places in the covariance of a place
_NUMBERS = 2**16  # of features whose distances are computed together
LARGEST = 2**22  # numbers in the covariances of a block; finer maps are averaged down to it


def _averaged(block: Tensor) -> Tensor:
    """Return a block (n, c, h, w), averaged down to `LARGEST`, (n, c, h', w')."""
    side = max(1, min(block.shape[-1], int(LARGEST**0.5 / block.shape[1])))
    return adaptive_avg_pool2d(block, side) if side < block.shape[-1] else block


def places(block: Tensor) -> Tensor:
    """Return a block (n, c, h, w), averaged down to `LARGEST`, as float64 (n, h', w', c)."""
    return _averaged(block).permute(0, 2, 3, 1).double()


def finest(evidence: Evidence) -> list[Tensor]:
    """Return the finest blocks of the discriminator."""
    return evidence.features[:BLOCKS]


def sums(evidence: Evidence) -> Tensors:
    """Return the `sums_of` the finest blocks."""
    return sums_of(finest(evidence))


def sums_of(blocks: list[Tensor]) -> Tensors:
    """Return the count, and for each block the sums of vectors and outer products at each place."""
    totals = {"count": blocks[0].new_tensor(float(len(blocks[0])), dtype=torch.float64)}
    for i, block in enumerate(blocks):
        v = places(block)
        totals[f"sum{i}"] = v.sum(0)
        totals[f"outer{i}"] = torch.einsum("nhwc,nhwd->hwcd", v, v)
    return totals


def fit(total: Tensors) -> Tensors:
    """Fit the mean (h, w, c) and whitening (h, w, c, c) of the places of each block."""
    count, fitted = total["count"], {}
    for i in range(sum(name.startswith("sum") for name in total)):
        mean = total[f"sum{i}"] / count
        covariance = total[f"outer{i}"] / count - mean[..., :, None] * mean[..., None, :]
        fitted[f"mean{i}"] = mean.float()
        fitted[f"whiten{i}"] = whitening(covariance, float(count)).float()
    return fitted


def forms(evidence: Evidence) -> Forms:
    """Return what the fitted tensors of the finest blocks are like."""
    return forms_of(finest(evidence))


def forms_of(blocks: list[Tensor]) -> Forms:
    """Return what the means and whitenings of the places of each block are like."""
    found: Forms = {}
    for i, block in enumerate(blocks):
        shape = tuple(places(block).shape[1:])
        found |= {f"mean{i}": Like(shape), f"whiten{i}": Like((*shape, shape[-1]))}
    return found


def whitening(covariance: Tensor, count: float) -> Tensor:
    """Return the whitening matrices (h, w, c, c), float64, of covariances of the same shape.

    They are transposed inverses of Cholesky factors. Each covariance, from `count` vectors, is
    first mixed with the mean over all places: the fewer vectors, the more.
    """
    channels = covariance.shape[-1]
    shared = covariance.mean((0, 1))
    borrowed = min(1.0, channels / (channels + count) + LEAST_SHARED)
    variance = shared.diagonal().clamp_min(0)
    # The added constants keep the covariance of a constant (dead) channel above zero.
    floor = torch.diag(1e-3 * variance + 1e-4 * variance.mean() + 1e-12)
    mixed = (1 - borrowed) * covariance + borrowed * shared + floor
    eye = torch.eye(channels, dtype=mixed.dtype, device=mixed.device).expand_as(mixed)
    inverse: Tensor = torch.linalg.solve_triangular(torch.linalg.cholesky(mixed), eye, upper=False)
    return inverse.mT


def distances(evidence: Evidence, block: Tensor, mean: Tensor, whiten: Tensor) -> Tensor:
    """Return mean squared whitened coordinates (n, h', w') of places of a block (n, c, h, w).

    Each place has a Gaussian, (h', w', c) and (h', w', c, c), or all have one, (c,) and (c, c).
    `block` is one of `evidence`, which keeps the distances.
    """

    def compute() -> Tensor:
        seen = _averaged(block)
        n, channels, height, width = seen.shape
        if recording():
            return _squares(seen, slice(0, height), mean, whiten).double()
        found = seen.new_empty((n, height, width), dtype=torch.float64)
        step = max(1, _NUMBERS // (n * width * channels))
        for top in range(0, height, step):
            # Some rows at a time, whose numbers fit the processor's cache.
            rows = slice(top, top + step)
            found[:, rows] = _squares(seen, rows, mean, whiten)
        return found

    return evidence.once(("distances", id(whiten)), compute)


def _squares(seen: Tensor, rows: slice, mean: Tensor, whiten: Tensor) -> Tensor:
    """Return the `distances` (n, rows, w) of some rows of an averaged block, float32."""
    v = seen[:, :, rows].permute(2, 3, 0, 1)
    of_places = whiten.ndim > 2
    centred = v - (mean[rows, :, None] if of_places else mean)
    whitened = centred @ (whiten[rows] if of_places else whiten)
    return whitened.square().mean(3).permute(2, 0, 1)


def measure(evidence: Evidence, fitted: Tensors) -> Tensor:
    """Return the `measure_of` the finest blocks, (n,)."""
    return measure_of(evidence, finest(evidence), fitted)


def measure_of(evidence: Evidence, blocks: list[Tensor], fitted: Tensors) -> Tensor:
    """Return how far the worst places exceed the others, (n,), as a geometric mean over blocks."""
    logs = []
    for i, block in enumerate(blocks):
        odd = distances(evidence, block, fitted[f"mean{i}"], fitted[f"whiten{i}"])
        logs.append(standing_out(odd.flatten(1)))
    return torch.stack(logs).mean(0).exp()


def standing_out(odd: Tensor) -> Tensor:
    """Return how far the highest squared distances (n, places) exceed the others, (n,).

    It is the logarithm of the mean over the worst hundredth of the places, divided by the square
    root of the mean over all places.
    """
    worst = odd.topk(max(1, round(WORST * odd.shape[1]))).values.mean(1)
    return (worst + 1e-12).log() - (odd.mean(1) + 1e-12).log() / 2


ENTRY = Term(
    measure,
    paper="Defard et al. 2021",
    sums=sums,
    fit=fit,
    forms=forms,
    unless=("mixture",),  # for the reason that `density` gives
    narrow=True,
    needs_latent=False,
)
