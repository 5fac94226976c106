"""Distance to the nearest of the training images, among the components that the model stores.

This is nearest-neighbour detection on the principal components of the pixels (Ramaswamy et al.
2000, "Efficient algorithms for mining outliers from large data sets"). The components are those of
`scoring.baselines.Baselines`. The default score does not contain this term; ``--score nearest``
asks for it.

A query is not compared with single images. It is compared with means, each of an image and of
those nearest to it. So a model stores no single image, and one anomaly among the training images
does not make its like normal.
"""

from __future__ import annotations

import torch
from torch import Tensor

from anoscan.core.tensors import Like
from anoscan.scoring.terms import Evidence, Forms, Tensors, Term

IMAGES_A_MEAN = 3
MOST_IMAGES = 8192  # images that means are made of, at most, evenly chosen: 1 MB of the model
BLOCK = 256  # images that are compared with all others at a time; bounds the memory


def on_components(components: Tensors, inside: Tensor) -> Tensors:
    """Return ``means`` (m, k), float16, of neighbours among the coordinates (n, k) of images."""
    some = inside[:: -(-len(inside) // MOST_IMAGES)].double()
    nearby = min(IMAGES_A_MEAN, len(some))
    means = []
    for start in range(0, len(some), BLOCK):
        block = some[start : start + BLOCK]
        squares = _squares(block, some)
        means.append(some[squares.topk(nearby, dim=1, largest=False).indices].mean(1))
    return {"means": torch.cat(means).half()}


def forms(evidence: Evidence) -> Forms:
    """Return what the fitted tensors are like."""
    return {"means": Like(("means of neighbours", "principal components"), torch.float16)}


def measure(evidence: Evidence, fitted: Tensors) -> Tensor:
    """Return the distance of each image to the nearest mean, (n,)."""
    means = fitted["means"].double()
    centred = evidence.x.flatten(1) - fitted["mean"]
    # One image at a time, so that no result depends on how many images are measured with it.
    inside = [(fitted["components"] @ row).double() for row in centred]
    return torch.stack([(means - place).square().sum(1).min().sqrt() for place in inside])


def _squares(block: Tensor, others: Tensor) -> Tensor:
    """Return the squared distances (b, n) between places (b, k) and others (n, k)."""
    product = block @ others.T
    return block.square().sum(1)[:, None] + others.square().sum(1) - 2 * product


ENTRY = Term(
    measure,
    paper="Ramaswamy et al. 2000",
    forms=forms,
    on_components=on_components,
    needs_latent=False,
    of_patches=False,
)
