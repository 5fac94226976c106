"""Anomaly maps: how anomalous each place of an image is.

The unit is a standard deviation of held-out normals. Every place is described by layers, which are
logarithms of distances. These are the distances of the discriminator's features from normal ones,
by one Gaussian a block (PaDiM, Defard et al. 2021, arXiv 2011.08785, with the GAN's own
discriminator). Another is the distance of the pixels from the reconstruction's. The others are the
energies of the fine detail of the image. Layers are smoothed, and one more Gaussian, fitted to
held-out normals, combines them. So a layer counts more where normal images agree in it, and values
below normal, as where something is out of focus, are anomalous too.

Where normal images are aligned, a place is compared with the same place of other images, otherwise
with all places. Aligned images have one more layer, the residual of the term ``subspace``, and
energies are relative to those of the reconstruction. Their layers are relative to the least
anomalous quarter of the image, so grain or exposure all over it is no defect.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from anoscan.core.arrays import Floats, allocate
from anoscan.core.runtime import exact_float32
from anoscan.core.tensors import Like
from anoscan.networks.architectures import Networks
from anoscan.scoring import detail
from anoscan.scoring.grid import Filter, blurring, enlarging, grid_side, smoothing
from anoscan.scoring.layers import (
    BACKBONE,
    FLOOR,
    NEIGHBOURHOODS,
    SUBSPACE,
    blocks,
    distances,
    fine,
    layers_of,
    own_blocks,
    pixel_squares,
    pretrained_blocks,
    together,
)
from anoscan.scoring.terms import Evidence, Forms, Tensors, gaussian_sums
from anoscan.scoring.terms.local import places, whitening

Batches = Callable[[], Iterable[Tensor]]

LAYER_SHRINKAGE = 0.01  # share of its diagonal that is added to the covariance of the layers
LEAST = 1e-8  # keeps a mean square above zero
LEAST_PLACE_SPREAD = 1e-3
LEAST_SPREAD = 0.02  # a layer that hardly differs between images must not decide alone
EDGE = 2  # places from the edge that the padding of the convolutions reaches
# Standard deviation of the smoothing of maps, in sides, by whether images are aligned.
LAST_BLUR = {True: 1 / 64, False: 1 / 16}
# Standard deviation, in sides, of the smoothing of the normal values of places: few images are held
# out, and neighbouring places have similar values.
BLUR = 1 / 16
SHRUNK = 8  # the mean over all places counts as much as so many images of one place
MOST_HELD_OUT = 256  # images or patches that maps are calibrated on, at most
FOLDS = 10  # parts of these images; the maps that measure the peaks of a part are fitted without it
PIXEL_RATE = 0.001  # share of the pixels of normal images in bright colours


@dataclass(frozen=True)
class MapScale:
    """The colour scale of the maps of a model.

    Parameters
    ----------
    level : float > 0
        The value of the middle colour, in standard deviations. A share of `PIXEL_RATE` of the
        pixels of held-out normals exceeds it.
    """

    level: float

    @property
    def brightest(self) -> float:
        """Value of the brightest colour; a normal image has hardly any bright pixel."""
        return 2 * self.level


@dataclass(frozen=True)
class Maps:
    """The fitted and calibrated statistics that maps are computed with.

    Parameters
    ----------
    tensors : dict of str to Tensor, float32 but for the basis of ``subspace/``
        ``mean{i}`` and ``whiten{i}`` are the Gaussians of the features of block i: (h, w, c) and
        (h, w, c, c) where images are aligned, otherwise (c,) and (c, c). ``subspace/...`` are the
        tensors of that term, where images are aligned. ``usual`` (1,) is the mean squared residual
        of the pixels of normal images. ``centre``, ``spread`` (m, g, g) and ``whiten`` (m, m) are
        the mean, standard deviation and whitening matrix of the m layers on a grid of side g.
        ``place_mean`` and ``place_spread`` (s, s) are the mean and standard deviation of the
        uncalibrated maps of held-out normals.
    aligned : bool
        Whether every place has its own Gaussians, and layers are relative to the least anomalous
        quarter of their image.
    scale : MapScale
    peaks : ndarray of shape (n,), float64, optional
        The highest value in the map of each calibration image, by maps that were calibrated on
        other images. A model file does not keep it.
    """

    tensors: Tensors
    aligned: bool
    scale: MapScale = MapScale(1.0)
    peaks: NDArray[np.float64] | None = None

    def measure(self, evidence: Evidence) -> Floats:
        """Compute maps (n, s, s), float32; 0 is normal for a place, 1 a standard deviation more."""
        return np.concatenate([part.cpu().numpy() for part in self.parts(evidence)])

    def parts(self, evidence: Evidence) -> Iterator[Tensor]:
        """Yield the maps (k, s, s) of `measure` for k images at a time, on their device."""
        size = evidence.x.shape[-1]
        for layers in layers_of(evidence, self.tensors, aligned=self.aligned):
            yield _of_layers(layers, self, size)

    def stored(self) -> dict[str, Tensor]:
        """Return the tensors that a model file stores; `restored` takes the others from terms."""
        own = not self.aligned
        return {k: v for k, v in self.tensors.items() if own or not _is_of_places(k)}

    def described(self) -> dict[str, Any]:
        """Return the JSON values that `restored` needs beside the tensors."""
        return {"aligned": self.aligned, "relative": self.aligned, "level": self.scale.level}

    @classmethod
    def restored(
        cls, tensors: Tensors, described: dict[str, Any], terms: dict[str, Tensors]
    ) -> Maps:
        """Rebuild maps from the results of `stored` and `described`, and from the fitted terms.

        Raises
        ------
        ValueError
            When there are no terms that the maps need, or aligned maps are not relative.
        """
        aligned = described["aligned"]
        if aligned and not {"local", "subspace"} <= terms.keys():
            raise ValueError("aligned maps need the terms local and subspace")
        if aligned != described["relative"]:
            raise ValueError("only aligned maps are relative, and all of them are")
        shared = _of_terms(terms) if aligned else {}
        return cls(tensors | shared, aligned, MapScale(described["level"]))


def forms(evidence: Evidence, aligned: bool) -> Forms:
    """Return what the tensors of `Maps.stored` are like, given evidence of any one image."""
    seen, side = blocks(evidence), evidence.x.shape[-1]
    found: Forms = {"usual": Like((1,), low=LEAST / 2)}
    for name, block in seen.items():
        if not aligned:
            c = block.shape[1]
            found |= {f"mean{name}": Like((c,)), f"whiten{name}": Like((c, c))}
    m = (1 + len(detail.blurs(side)) + aligned + len(seen)) * len(NEIGHBOURHOODS[aligned])
    g = grid_side(side)
    return found | {
        "centre": Like((m, g, g)),
        "spread": Like((m, g, g), low=LEAST_SPREAD / 2),
        "whiten": Like((m, m)),
        "place_mean": Like((side, side)),
        "place_spread": Like((side, side), low=LEAST_PLACE_SPREAD / 2),
    }


def fit(
    networks: Networks,
    terms: dict[str, Tensors],
    training: Batches,
    held_out: Batches,
    align: bool | None,
    inside: NDArray[np.bool_] | None = None,
) -> Maps:
    """Learn what is normal at each place, and calibrate the maps on held-out normals.

    Parameters
    ----------
    networks : Networks
    terms : dict
        The fitted terms; aligned maps take the tensors of ``local`` and ``subspace``.
    training, held_out : callable
        Functions that return batches (n, c, s, s) in [-1, 1]. These are training images, or some of
        them, and normal images that no network learned from.
    align : bool or None
        Whether every place has its own Gaussians. With None, the likelihood of the features of
        held-out normals decides.
    inside : ndarray of shape (s, s) or (n, s, s), bool, optional
        The places that count, in all images or in each; by default all.
    """
    with exact_float32():
        usual, own = _usual(networks, training()), _of_terms(terms)
        anywhere = {} if align else _fit_blocks(networks, training(), own_blocks)
        if align is None:
            align = _expectation(networks, own, held_out()) > _expectation(
                networks, anywhere, held_out()
            )
        if not align:  # a pretrained network costs most, so it comes after the decision
            anywhere |= _fit_blocks(networks, training(), pretrained_blocks)
        chosen = Maps((own if align else anywhere) | usual, align)
        return calibrated(networks, chosen, held_out, inside)


def calibrated(
    networks: Networks,
    maps: Maps,
    held_out: Batches,
    inside: NDArray[np.bool_] | None = None,
) -> Maps:
    """Calibrate maps on held-out normals: the scale of layers, of places, and of colours.

    All that was learned from training images stays. The result has `Maps.peaks`.

    Parameters
    ----------
    networks : Networks
    maps : Maps
    held_out : callable
        A function that returns batches (n, c, s, s) in [-1, 1] of normal images that no network
        learned from. It is called twice.
    inside : ndarray of shape (s, s) or (n, s, s), bool, optional
        The places that count, in all images or in each; by default all.
    """
    layers, side = _held(networks, maps, held_out)
    n, folds = len(layers), min(FOLDS, len(layers))
    counted = np.empty((n, side, side), np.float32)
    for first in range(folds):
        own = np.arange(first, n, folds)
        others = np.delete(np.arange(n), own) if folds > 1 else own
        crossed = _fitted(maps, layers, others, side)
        for rows, some in _chunks(layers, own, maps):
            counted[rows] = _of_layers(some, crossed, side).cpu().numpy()
    places = None if inside is None else np.broadcast_to(inside, counted.shape)
    level = np.quantile(counted if places is None else counted[places], 1 - PIXEL_RATE)
    if places is not None:
        counted[~places] = -np.inf
    peaks = counted.max((1, 2)).astype(np.float64)
    whole = _fitted(maps, layers, np.arange(n), side)
    return dataclasses.replace(whole, scale=MapScale(max(float(level), 1e-3)), peaks=peaks)


def _held(networks: Networks, maps: Maps, batches: Batches) -> tuple[Floats, int]:
    """Return the layers (n, m, g, g) of images, on disk where they are large, and their side."""
    kept: Floats | None = None
    done = side = 0
    count = sum(len(x) for x in batches())
    with exact_float32():
        for x in batches():
            side = x.shape[-1]
            for some in layers_of(Evidence(networks, x), maps.tensors, aligned=maps.aligned):
                if kept is None:
                    kept = allocate((count, *some.shape[1:]))
                kept[done : done + len(some)] = some.cpu().numpy()
                done += len(some)
    if kept is None:
        raise RuntimeError("there is always a held-out image")
    return kept, side


def _chunks(
    layers: Floats, rows: NDArray[np.intp], maps: Maps
) -> Iterator[tuple[NDArray[np.intp], Tensor]]:
    """Yield some of the rows at a time, and their layers (k, m, g, g) on the device of the maps."""
    device = maps.tensors["usual"].device
    step = together(layers.shape[-1])
    for start in range(0, len(rows), step):
        some = rows[start : start + step]
        yield some, torch.from_numpy(np.ascontiguousarray(layers[some])).to(device)


def _fitted(maps: Maps, layers: Floats, rows: NDArray[np.intp], side: int) -> Maps:
    """Fit all scales but that of colours to some rows of the layers of normal images."""
    device = maps.tensors["usual"].device
    unscaled = {
        "place_mean": torch.zeros(1, device=device),
        "place_spread": torch.ones(1, device=device),
    }
    gaussian = _fit_layers(maps, layers, rows)
    bare = dataclasses.replace(maps, tensors=maps.tensors | unscaled | gaussian)
    charts = (_of_layers(some, bare, side)[:, None] for _, some in _chunks(layers, rows, maps))
    # Left in, the effect of the place in a tile would repeat from tile to tile in blended maps.
    first, second = _means(charts, len(rows))
    mean = _of_place(first, len(rows), maps.aligned)
    around = (second - 2 * mean * first + mean.square()).clamp_min(0)
    spread = (_of_place(around, len(rows), maps.aligned) + LEAST_PLACE_SPREAD**2).sqrt()
    placed = _float32({"place_mean": mean[0], "place_spread": spread[0]})
    return dataclasses.replace(bare, tensors=bare.tensors | placed)


def _means(fields: Iterable[Tensor], count: int) -> tuple[Tensor, Tensor]:
    """Return the means over images of fields (k, m, g, g), and of their squares, float64."""
    total = squares = torch.zeros(())
    for some in fields:
        exact = some.double()
        total, squares = total + exact.sum(0), squares + exact.square().sum(0)
    return total / count, squares / count


def _float32(tensors: Tensors) -> Tensors:
    return {name: tensor.float() for name, tensor in tensors.items()}


def _is_of_places(name: str) -> bool:
    of_blocks = name.startswith(("mean", "whiten")) and name[-1].isdigit()
    return of_blocks or name.startswith(SUBSPACE)


def _of_terms(terms: dict[str, Tensors]) -> Tensors:
    """Return the tensors that aligned maps share with the terms ``local`` and ``subspace``."""
    pixels = {f"{SUBSPACE}{name}": value for name, value in terms.get("subspace", {}).items()}
    local = terms.get("backbone_local", {})
    pretrained = {_of_backbone(name): value for name, value in local.items()}
    return terms["local"] | pixels | pretrained


def _of_backbone(name: str) -> str:
    """Return the name in maps of a tensor of ``backbone_local``, whose last digit is a block's."""
    return f"{name[:-1]}{BACKBONE}{name[-1]}"


def _usual(networks: Networks, batches: Iterable[Tensor]) -> Tensors:
    """Return the mean squared residual of the pixels of normal images, as ``usual``."""
    squares = [pixel_squares(Evidence(networks, batch)).double().mean((1, 2)) for batch in batches]
    mean = torch.cat(squares).mean(0, keepdim=True)
    return {"usual": ((1 + FLOOR) * mean + LEAST).float()}


def _fit_blocks(
    networks: Networks, batches: Iterable[Tensor], seen: Callable[[Evidence], dict[str, Tensor]]
) -> Tensors:
    """Fit one Gaussian for all places to each block that `seen` returns."""
    sums: dict[str, Tensors] = {}
    for batch in batches:
        for name, block in seen(Evidence(networks, batch)).items():
            vectors = places(block).flatten(0, 2)
            _add(sums.setdefault(name, {}), gaussian_sums(vectors))
    fitted = {}
    for name, total in sums.items():
        mean = total["sum"] / total["count"]
        covariance = total["outer"] / total["count"] - torch.outer(mean, mean)
        fitted[f"mean{name}"] = mean.float()
        alone = whitening(covariance[None, None], float(total["count"]))
        fitted[f"whiten{name}"] = alone[0, 0].float()
    return fitted


def _add(total: Tensors, more: Tensors) -> None:
    for key, value in more.items():
        total[key] = total[key] + value if key in total else value


def _expectation(networks: Networks, tensors: Tensors, batches: Iterable[Tensor]) -> float:
    """Return the log-likelihood of features, summed over blocks and averaged over all else."""
    likelihoods, images = 0.0, 0
    for batch in batches:
        evidence = Evidence(networks, batch)
        for i, f in enumerate(fine(evidence.features)):
            whiten = tensors[f"whiten{i}"].double()
            volume = whiten.diagonal(dim1=-2, dim2=-1).abs().log().mean(-1)
            for distance in distances(evidence, str(i), f, tensors):
                likelihood = volume.expand_as(distance) - distance / 2
                # The padding makes the edges of all images similar, whether aligned or not.
                edge = EDGE if min(likelihood.shape) > 2 * EDGE else 0
                inner = likelihood[edge : len(likelihood) - edge, edge : len(likelihood) - edge]
                likelihoods += float(inner.mean())
        images += len(batch)
    return likelihoods / images


def _fit_layers(maps: Maps, layers: Floats, rows: NDArray[np.intp]) -> Tensors:
    """Fit the centre, spread and whitening of some rows of the layers of normal images."""

    def parts() -> Iterator[Tensor]:
        return (some for _, some in _chunks(layers, rows, maps))

    first, second = _means(parts(), len(rows))
    mean = _of_place(first, len(rows), maps.aligned)
    # Rounding can make the square of the mean larger than the mean of the squares.
    variance = (second - first.square()).clamp_min(0)
    spread = (_of_place(variance, len(rows), maps.aligned) + LEAST_SPREAD**2).sqrt()
    outer = torch.zeros(len(mean), len(mean), dtype=torch.float64, device=mean.device)
    for some in parts():
        flat = ((some - mean.float()) / spread.float()).flatten(2)
        outer += (flat @ flat.mT).double().sum(0) / flat.shape[2]
    diagonal = outer.diagonal() / len(rows) + 1e-6
    mixed = outer / len(rows) + LAYER_SHRINKAGE * torch.diag(diagonal)
    whiten = torch.linalg.inv(torch.linalg.cholesky(mixed)).T
    return _float32({"centre": mean, "spread": spread, "whiten": whiten.contiguous()})


def _of_place(field: Tensor, count: int, aligned: bool) -> Tensor:
    """Estimate the normal value of each place (m, g, g), from means over `count` images."""
    if not aligned:
        # Places differ only by their distance from the edge, where networks see padding. So the
        # mean is taken over all rotations and reflections.
        rotated = [field.rot90(k, (1, 2)) for k in range(4)]
        return torch.stack([*rotated, *(turned.flip(1) for turned in rotated)]).mean(0)
    own = blurring(field.shape[-1], BLUR * field.shape[-1], truncated=4.0)(field)
    everywhere = field.mean((1, 2), keepdim=True)
    return (count * own + SHRUNK * everywhere) / (count + SHRUNK)


def _of_layers(layers: Tensor, maps: Maps, size: int) -> Tensor:
    """Return the maps (n, size, size), float32, of images with the layers (n, m, g, g).

    A map is the smoothed logarithm of the Mahalanobis distance of the layers, in standard
    deviations of its place.
    """
    centre, spread, whiten = (maps.tensors[name] for name in ("centre", "spread", "whiten"))
    side = layers.shape[-1]
    standard = ((layers - centre) / spread).flatten(2)
    whitened = (whiten.T @ standard).reshape(layers.shape)
    raw = (whitened.square().mean(1) + FLOOR).log() / 2
    last = _last(side, size, LAST_BLUR[maps.aligned])
    return (last(raw) - maps.tensors["place_mean"]) / maps.tensors["place_spread"]


@functools.lru_cache
def _last(side: int, size: int, share: float) -> Filter:
    """Return the filter of the map on its grid: it is smoothed, and enlarged to the image."""
    return enlarging(side, size).after(smoothing(side, side, share))
