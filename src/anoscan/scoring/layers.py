"""The layers that anomaly maps are made of: what describes each place of an image.

`maps` says what the layers are, and combines them.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pad

from anoscan.core.tracing import recording
from anoscan.scoring import detail
from anoscan.scoring.grid import grid_side, smoothing, to_grid
from anoscan.scoring.terms import Evidence, Tensors, backbone_local, local, subspace
from anoscan.scoring.terms.local import BLOCKS

CALM = 0.25  # share of an image's places that is taken for normal
FEWEST_PLACES = 8  # along the side of a block: coarser blocks do not locate a defect
FLOOR = 0.1  # added to distances, which are about 1 for normal images: far smaller ones are noise
# Standard deviations of the smoothing of layers, in sides of an image or a tile, by whether images
# are aligned. An anomalous texture needs a neighbourhood to show; an anomalous part of an aligned
# image shows at its own place.
NEIGHBOURHOODS = {True: (1 / 64, 1 / 32), False: (1 / 64, 1 / 12)}
SUBSPACE = "subspace/"  # prefix of the names of that term's tensors
BACKBONE = "backbone"  # prefix of the names of a pretrained network's blocks
_CELLS = 2**14  # of grids that are filtered together
_SAMPLED = 16  # places along a side, at most, whose values say what is least anomalous


def fine(features: list[Tensor]) -> list[Tensor]:
    """Return the finest blocks; a place of a coarser one sees most of the image."""
    found = [block for block in features[:BLOCKS] if block.shape[-1] >= FEWEST_PLACES]
    return found or features[:1]


def own_blocks(evidence: Evidence) -> dict[str, Tensor]:
    """Return the blocks of the discriminator that maps see, by their names."""
    return {str(i): block for i, block in enumerate(fine(evidence.features))}


def pretrained_blocks(evidence: Evidence) -> dict[str, Tensor]:
    """Return the blocks of a pretrained network that maps see, by their names; {} without one."""
    return {f"{BACKBONE}{i}": f for i, f in enumerate(backbone_local.blocks(evidence))}


def blocks(evidence: Evidence) -> dict[str, Tensor]:
    """Return all blocks that maps see, by their names."""
    return own_blocks(evidence) | pretrained_blocks(evidence)


def pixel_squares(evidence: Evidence) -> Tensor:
    """Return the squared residual of the pixels (n, s, s), as a mean over channels."""
    return (evidence.x - evidence.x_hat).square().mean(1)


def together(side: int) -> int:
    """Return how many images with a grid of so many cells a side are filtered together."""
    return max(1, _CELLS // side**2)


def layers_of(evidence: Evidence, tensors: Tensors, *, aligned: bool) -> Iterator[Tensor]:
    """Yield the layers (k, m, g, g), float32, of k images at a time; g is their `grid_side`.

    `tensors` are those of `maps.Maps`.
    """
    side = grid_side(evidence.x.shape[-1])
    places, reduced = [], to_grid(evidence.x.shape[-1])
    if aligned:
        names = ("mean", "basis", "expected")
        known = {name: tensors[f"{SUBSPACE}{name}"] for name in names}
        places.append(subspace.residual(evidence, known))
    for name, block in blocks(evidence).items():
        far = distances(evidence, name, block, tensors)
        # The Gaussian of all places calls padding anomalous. So the outermost places take the
        # values of their neighbours inside.
        places.append(far if aligned else _without_edge(far))
    squares, shares = pixel_squares(evidence), NEIGHBOURHOODS[aligned]
    step = together(side)
    # All steps are made for a few images at a time, whose layers fit the processor's cache.
    starts = [None] if recording() else range(0, len(evidence.x), step)
    for start in starts:
        part = slice(None) if start is None else slice(start, start + step)
        found = [_logs(reduced(squares[part] / tensors["usual"]))]
        found += _detail(evidence.x[part], evidence.x_hat[part] if aligned else None)
        found += [_logs(squared[part].float()) for squared in places]
        smooth = torch.stack(
            [smoothing(layer.shape[-1], side, share)(layer) for share in shares for layer in found],
            1,
        )
        yield smooth - _calm(smooth) if aligned else smooth


def distances(evidence: Evidence, name: str, block: Tensor, tensors: Tensors) -> Tensor:
    """Return the mean squared whitened coordinate at every place of a block, (n, h, w)."""
    return local.distances(evidence, block, tensors[f"mean{name}"], tensors[f"whiten{name}"])


def _logs(squares: Tensor) -> Tensor:
    return (squares + FLOOR).log()


def _detail(x: Tensor, x_hat: Tensor | None) -> list[Tensor]:
    """Return the logarithms (n, g, g) of the energies of detail of images.

    Those of their reconstructions, where given, are taken off.
    """

    def logs(pixels: Tensor) -> list[Tensor]:
        return [(energy + detail.LEAST).log() for energy in detail.energies(pixels)]

    if x_hat is None:
        return logs(x)
    return [own - normal for own, normal in zip(logs(x), logs(x_hat), strict=True)]


def _calm(smooth: Tensor) -> Tensor:
    """Return about the `CALM` quantile (n, m, 1, 1) of the layers (n, m, g, g) of each image.

    Neighbouring places are similar, so a part of the places is enough where there are many.
    """
    step = -(-smooth.shape[-1] // _SAMPLED)
    some = smooth[..., ::step, ::step].flatten(2)
    rank = round(CALM * (some.shape[2] - 1))
    if recording():
        return some.topk(rank + 1, 2, largest=False).values[..., -1, None, None]
    # NumPy's selection is several times as fast as torch's on a processor.
    calm = np.partition(some.cpu().numpy(), rank, axis=2)[..., rank]
    return torch.from_numpy(calm).to(smooth.device)[..., None, None]


def _without_edge(layer: Tensor) -> Tensor:
    if min(layer.shape[1:]) < FEWEST_PLACES:
        return layer
    return pad(layer[:, None, 1:-1, 1:-1], (1,) * 4, mode="replicate")[:, 0]
