"""Squared residual of the pixels from the principal components that the model stores.

This is the baseline ``pca`` of ``anoscan eval`` (`scoring.baselines.Baselines`) as a score of its
own. The default score does not contain this term; ``--score pca`` asks for it.
"""

from __future__ import annotations

import torch
from torch import Tensor

from anoscan.scoring.terms import Evidence, Tensors, Term


def on_components(components: Tensors, inside: Tensor) -> Tensors:
    """Return no tensors, because the term needs the shared components alone."""
    return {}


def measure(evidence: Evidence, fitted: Tensors) -> Tensor:
    """Return the mean squared residual of each image, (n,)."""
    mean, components = fitted["mean"], fitted["components"]
    centred = evidence.x.flatten(1) - mean
    # One image at a time, so that no result depends on how many images are measured with it.
    left = [row - (components @ row) @ components for row in centred]
    return torch.stack(left).double().square().mean(1)


ENTRY = Term(measure, paper="Jolliffe 2002", on_components=on_components, needs_latent=False)
