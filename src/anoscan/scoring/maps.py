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
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage
from torch import Tensor

from anoscan.core.arrays import Floats, allocate
from anoscan.core.runtime import exact_float32
from anoscan.core.tensors import Like
from anoscan.networks.architectures import Networks
from anoscan.scoring import detail
from anoscan.scoring.grid import enlarged, grid_side, on_grid, smoothed
from anoscan.scoring.terms import Evidence, Forms, Tensors, backbone_local, gaussian_sums, subspace
from anoscan.scoring.terms.local import BLOCKS, places, whitening

Batches = Callable[[], Iterable[Tensor]]

LAYER_SHRINKAGE = 0.01  # share of its diagonal that is added to the covariance of the layers
CALM = 0.25  # share of an image's places that is taken for normal
LEAST = 1e-8  # keeps a mean square above zero
LEAST_PLACE_SPREAD = 1e-3
LEAST_SPREAD = 0.02  # a layer that hardly differs between images must not decide alone
FEWEST_PLACES = 8  # along the side of a block: coarser blocks do not locate a defect
EDGE = 2  # places from the edge that the padding of the convolutions reaches
FLOOR = 0.1  # added to distances, which are about 1 for normal images: far smaller ones are noise
# Standard deviations of the smoothing of layers, and of the map itself, in sides of an image or a
# tile, by whether images are aligned. An anomalous texture needs a neighbourhood to show; an
# anomalous part of an aligned image shows at its own place.
NEIGHBOURHOODS = {True: (1 / 64, 1 / 32), False: (1 / 64, 1 / 12)}
LAST_BLUR = {True: 1 / 64, False: 1 / 16}
# Standard deviation, in sides, of the smoothing of the normal values of places: few images are held
# out, and neighbouring places have similar values.
BLUR = 1 / 16
SHRUNK = 8  # the mean over all places counts as much as so many images of one place
_SUBSPACE = "subspace/"  # prefix of the names of that term's tensors
_BACKBONE = "backbone"  # prefix of the names of a pretrained network's blocks
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
        Whether every place has its own Gaussians.
    scale : MapScale
    relative : bool
        Whether layers are relative to the least anomalous quarter of their image.
    peaks : ndarray of shape (n,), float64, optional
        The highest value in the map of each calibration image, by maps that were calibrated on
        other images. A model file does not keep it.
    """

    tensors: Tensors
    aligned: bool
    scale: MapScale = MapScale(1.0)
    relative: bool = False
    peaks: NDArray[np.float64] | None = None

    def measure(self, evidence: Evidence) -> Floats:
        """Compute maps (n, s, s), float32; 0 is normal for a place, 1 a standard deviation more."""
        return self._of_layers(_layers(evidence, self), evidence.x.shape[-1])

    def _of_layers(self, images: Iterable[Floats], side: int) -> Floats:
        combined = (_combined(layers, self) for layers in images)
        raw = np.stack([enlarged(torch.from_numpy(one), side) for one in combined])
        mean, spread = (self.tensors[f"place_{name}"].cpu().numpy() for name in ("mean", "spread"))
        standard: Floats = (raw - mean) / spread
        return standard

    def stored(self) -> dict[str, Tensor]:
        """Return the tensors that a model file stores; `restored` takes the others from terms."""
        own = not self.aligned
        return {k: v for k, v in self.tensors.items() if own or not _is_of_places(k)}

    def described(self) -> dict[str, Any]:
        """Return the JSON values that `restored` needs beside the tensors."""
        return {
            "aligned": self.aligned,
            "relative": self.relative,
            "level": self.scale.level,
        }

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
        aligned, relative = described["aligned"], described["relative"]
        if aligned and not {"local", "subspace"} <= terms.keys():
            raise ValueError("aligned maps need the terms local and subspace")
        if aligned != relative:
            raise ValueError("only aligned maps are relative, and all of them are")
        shared = _of_terms(terms) if aligned else {}
        return cls(tensors | shared, aligned, MapScale(described["level"]), relative)


def forms(evidence: Evidence, aligned: bool) -> Forms:
    """Return what the tensors of `Maps.stored` are like, given evidence of any one image."""
    blocks, side = _blocks(evidence), evidence.x.shape[-1]
    found: Forms = {"usual": Like((1,), low=LEAST / 2)}
    for name, block in blocks.items():
        if not aligned:
            c = block.shape[1]
            found |= {f"mean{name}": Like((c,)), f"whiten{name}": Like((c, c))}
    m = (1 + len(detail.blurs(side)) + aligned + len(blocks)) * len(NEIGHBOURHOODS[aligned])
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
        anywhere = _fit_blocks(networks, training())
        own = _of_terms(terms)
        if align is None:
            align = _expectation(networks, own, held_out()) > _expectation(
                networks, anywhere, held_out()
            )
        usual = {k: v for k, v in anywhere.items() if not _is_of_places(k)}
        chosen = Maps((own if align else anywhere) | usual, align, relative=align)
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
        own = range(first, n, folds)
        others = [layers[row] for row in range(n) if row not in own] or list(layers)
        crossed = _fitted(maps, others, side)._of_layers([layers[row] for row in own], side)
        counted[list(own)] = crossed
    places = None if inside is None else np.broadcast_to(inside, counted.shape)
    level = np.quantile(counted if places is None else counted[places], 1 - PIXEL_RATE)
    if places is not None:
        counted[~places] = -np.inf
    peaks = counted.max((1, 2)).astype(np.float64)
    return dataclasses.replace(
        _fitted(maps, list(layers), side), scale=MapScale(max(float(level), 1e-3)), peaks=peaks
    )


def _held(networks: Networks, maps: Maps, batches: Batches) -> tuple[Floats, int]:
    """Return the layers (n, m, g, g) of images, on disk where they are large, and their side."""
    kept: Floats | None = None
    done = side = 0
    count = sum(len(x) for x in batches())
    with exact_float32():
        for x in batches():
            side = x.shape[-1]
            for layers in _layers(Evidence(networks, x), maps):
                if kept is None:
                    kept = allocate((count, *layers.shape))
                kept[done] = layers
                done += 1
    if kept is None:
        raise RuntimeError("there is always a held-out image")
    return kept, side


def _fitted(maps: Maps, layers: Sequence[Floats], side: int) -> Maps:
    """Fit all scales but that of colours to the layers (m, g, g) of normal images."""
    unscaled = {"place_mean": torch.zeros(1), "place_spread": torch.ones(1)}
    gaussian = _fit_layers(layers, maps.aligned)
    bare = dataclasses.replace(maps, tensors=maps.tensors | unscaled | gaussian)
    raw = bare._of_layers(layers, side).astype(np.float64)
    # Left in, the effect of the place in a tile would repeat from tile to tile in blended maps.
    n = len(raw)
    mean = _of_place(raw.mean(0)[None], n, maps.aligned)[0]
    spread = np.sqrt(
        _of_place(np.square(raw - mean).mean(0)[None], n, maps.aligned)[0] + LEAST_PLACE_SPREAD**2
    )
    placed = {
        "place_mean": torch.from_numpy(mean.astype(np.float32)),
        "place_spread": torch.from_numpy(spread.astype(np.float32)),
    }
    return dataclasses.replace(bare, tensors=bare.tensors | placed)


def _is_of_places(name: str) -> bool:
    of_blocks = name.startswith(("mean", "whiten")) and name[-1].isdigit()
    return of_blocks or name.startswith(_SUBSPACE)


def _of_terms(terms: dict[str, Tensors]) -> Tensors:
    """Return the tensors that aligned maps share with the terms ``local`` and ``subspace``."""
    pixels = {f"{_SUBSPACE}{name}": value for name, value in terms.get("subspace", {}).items()}
    local = terms.get("backbone_local", {})
    pretrained = {_of_backbone(name): value for name, value in local.items()}
    return terms["local"] | pixels | pretrained


def _of_backbone(name: str) -> str:
    """Return the name in maps of a tensor of ``backbone_local``, whose last digit is a block's."""
    return f"{name[:-1]}{_BACKBONE}{name[-1]}"


def _fit_blocks(networks: Networks, batches: Iterable[Tensor]) -> Tensors:
    """Fit one Gaussian a block for all places, and the mean squared residual of the pixels."""
    sums: dict[str, Tensors] = {}
    for batch in batches:
        evidence = Evidence(networks, batch)
        squares = _pixel_squares(evidence).mean((1, 2))
        count = squares.new_tensor(float(len(squares)))
        _add(sums.setdefault("usual", {}), {"count": count, "sum": squares.sum(0, keepdim=True)})
        for name, block in _blocks(evidence).items():
            vectors = places(block).flatten(0, 2)
            _add(sums.setdefault(name, {}), gaussian_sums(vectors))
    residual = sums.pop("usual")
    fitted = {"usual": ((1 + FLOOR) * residual["sum"] / residual["count"] + LEAST).float()}
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


def _expectation(networks: Networks, blocks: Tensors, batches: Iterable[Tensor]) -> float:
    """Return the log-likelihood of features, summed over blocks and averaged over all else."""
    likelihoods, images = 0.0, 0
    for batch in batches:
        for i, f in enumerate(_fine(networks.discriminator.features(batch))):
            whiten = blocks[f"whiten{i}"].double()
            volume = whiten.diagonal(dim1=-2, dim2=-1).abs().log().mean(-1)
            for distance in _distances(f, blocks, str(i)):
                likelihood = volume.expand_as(distance) - distance / 2
                # The padding makes the edges of all images similar, whether aligned or not.
                edge = EDGE if min(likelihood.shape) > 2 * EDGE else 0
                inner = likelihood[edge : len(likelihood) - edge, edge : len(likelihood) - edge]
                likelihoods += float(inner.mean())
        images += len(batch)
    return likelihoods / images


def _fine(features: list[Tensor]) -> list[Tensor]:
    """Return the finest blocks; a place of a coarser one sees most of the image."""
    fine = [block for block in features[:BLOCKS] if block.shape[-1] >= FEWEST_PLACES]
    return fine or features[:1]


def _blocks(evidence: Evidence) -> dict[str, Tensor]:
    """Return the blocks that maps see, those of a pretrained network too, by their names."""
    own = {str(i): block for i, block in enumerate(_fine(evidence.features))}
    pretrained = {f"{_BACKBONE}{i}": f for i, f in enumerate(backbone_local.blocks(evidence))}
    return own | pretrained


def _pixel_squares(evidence: Evidence) -> Tensor:
    return (evidence.x - evidence.x_hat).double().square().mean(1)


def _distances(block: Tensor, blocks: Tensors, name: str) -> list[Tensor]:
    """Return the mean squared whitened coordinate at every place (h, w), for each image."""
    mean, whiten = blocks[f"mean{name}"].double(), blocks[f"whiten{name}"].double()
    product = "hwc,hwcd->hwd" if whiten.ndim == 4 else "hwc,cd->hwd"
    # One image at a time, so that no map depends on how many images are measured with it.
    return [
        torch.einsum(product, places(image[None])[0] - mean, whiten).square().mean(2)
        for image in block
    ]


def _layers(evidence: Evidence, maps: Maps) -> Iterable[Floats]:
    """Yield the layers (m, g, g) of each image; g is its side, or half of it; see `grid_side`."""
    tensors, side = maps.tensors, evidence.x.shape[-1]
    pixels = on_grid(_pixel_squares(evidence) / tensors["usual"].double())
    found = [_logs(pixels), *_detail(evidence, maps.relative)]
    if maps.relative:
        names = ("mean", "basis", "expected")
        known = {name: tensors[f"{_SUBSPACE}{name}"] for name in names}
        found.append(_logs(subspace.residual(evidence.x, known)))
    for name, block in _blocks(evidence).items():
        # The Gaussian of all places calls padding anomalous. So the outermost places take the
        # values of their neighbours inside.
        inner = _own if maps.aligned else _without_edge
        found.append(_logs([inner(distance) for distance in _distances(block, tensors, name)]))
    side = grid_side(side)
    for one in zip(*found, strict=True):
        grown = np.stack([enlarged(layer, side) for layer in one])
        smooth = np.concatenate([smoothed(grown, share) for share in NEIGHBOURHOODS[maps.aligned]])
        yield smooth - _calm(smooth) if maps.relative else smooth


def _logs(distances: Iterable[Tensor]) -> list[Tensor]:
    return [(distance + FLOOR).log() for distance in distances]


def _detail(evidence: Evidence, relative: bool) -> list[list[Tensor]]:
    """Return the logarithms (g, g) of the energies of detail, for each energy and image.

    With `relative`, those of the reconstruction are taken off.
    """

    def logs(x: Tensor) -> list[Tensor]:
        return [(on_grid(energy) + detail.LEAST).log() for energy in detail.energies(x)]

    found = logs(evidence.x)
    if relative:
        expected = logs(evidence.x_hat)
        found = [own - normal for own, normal in zip(found, expected, strict=True)]
    return list(map(list, found))


def _calm(layers: Floats) -> Floats:
    """Return the `CALM` quantile (m, 1, 1) of each layer (m, g, g) of one image."""
    calm: Floats = np.quantile(layers, CALM, axis=(1, 2), keepdims=True).astype(np.float32)
    return calm


def _own(layer: Tensor) -> Tensor:
    return layer


def _without_edge(layer: Tensor) -> Tensor:
    if min(layer.shape) < FEWEST_PLACES:
        return layer
    inner = layer[None, None, 1:-1, 1:-1]
    return torch.nn.functional.pad(inner, (1, 1, 1, 1), mode="replicate")[0, 0]


def _fit_layers(images: Sequence[Floats], aligned: bool) -> Tensors:
    """Fit the centre, spread and whitening of the layers (m, g, g) of normal images."""
    count, total, squares = len(images), np.zeros((1, 1, 1)), np.zeros((1, 1, 1))
    for layers in images:
        exact = layers.astype(np.float64)
        total, squares = total + exact, squares + np.square(exact)
    mean = _of_place(total / count, count, aligned)
    # Rounding can make the square of the mean larger than the mean of the squares.
    variance = _of_place(np.maximum(squares / count - (total / count) ** 2, 0), count, aligned)
    spread = np.sqrt(variance + LEAST_SPREAD**2)
    outer = np.zeros((len(mean), len(mean)))
    for layers in images:
        flat = ((layers - mean) / spread).reshape(len(layers), -1)
        outer += flat @ flat.T / flat.shape[1]
    mixed = outer / count + LAYER_SHRINKAGE * np.diag(outer.diagonal() / count + 1e-6)
    whiten = np.linalg.inv(np.linalg.cholesky(mixed)).T
    numbers = {"centre": mean, "spread": spread, "whiten": whiten}
    return {name: torch.from_numpy(array.astype(np.float32)) for name, array in numbers.items()}


def _of_place(field: NDArray[np.float64], count: int, aligned: bool) -> NDArray[np.float64]:
    """Estimate the normal value of each place (m, g, g), from means over `count` images."""
    if not aligned:
        # Places differ only by their distance from the edge, where networks see padding. So the
        # mean is taken over all rotations and reflections.
        rotated = [np.rot90(field, k, (1, 2)) for k in range(4)]
        alike: NDArray[np.float64] = np.mean([*rotated, *(t[:, ::-1] for t in rotated)], 0)
        return alike
    sigma = BLUR * field.shape[-1]
    own = ndimage.gaussian_filter(field, (0, sigma, sigma), mode="nearest")
    everywhere = field.mean((1, 2), keepdims=True)
    mixed: NDArray[np.float64] = (count * own + SHRUNK * everywhere) / (count + SHRUNK)
    return mixed


def _combined(layers: Floats, maps: Maps) -> Floats:
    """Return the smoothed logarithm (g, g) of the Mahalanobis distance of the layers (m, g, g)."""
    centre, spread, whiten = (
        maps.tensors[name].cpu().numpy() for name in ("centre", "spread", "whiten")
    )
    whitened = np.einsum("mhw,md->dhw", (layers - centre) / spread, whiten)
    raw = np.log(np.square(whitened).mean(0) + FLOOR) / 2
    smooth: Floats = smoothed(raw[None].astype(np.float32), LAST_BLUR[maps.aligned])[0]
    return smooth
