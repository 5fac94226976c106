"""How unsure the discriminator is of the image's rotation, over all four quarter rotations.

A network that learned to predict the rotation of normal images is less sure of that of anomalies.
The papers are Golan and El-Yaniv 2018, "Deep Anomaly Detection Using Geometric Transformations"
(arXiv 1805.10917), and Hendrycks et al. 2019 (arXiv 1906.12340), section 4. The term costs three
more passes of the discriminator and needs no other network.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from anoscan.scoring.terms import Evidence, Tensors, Term


def measure(evidence: Evidence, fitted: Tensors) -> Tensor:
    """Return exp(-margin) of each image, (n,).

    The margin is the logit of the true rotation minus the mean of all four logits, as a mean over
    the four rotations. Unlike probabilities, it does not saturate when the network is sure.
    """
    rotations = evidence.rotations.double()
    right = rotations.diagonal(dim1=1, dim2=2)
    margin = (right - rotations.mean(2)).mean(1)
    return torch.exp(-margin)


def certainty(rotations: Tensor) -> Tensor:
    """Return 1 - cross-entropy / log 4 for the rotation logits (n, 4, 4) of images, (n,).

    It is 1 for certainty, 0 for guessing, and negative for worse than guessing.
    """
    right = rotations.double().log_softmax(2).diagonal(dim1=1, dim2=2)
    return 1 + right.mean(1) / math.log(4)


def weight(evidence: Evidence) -> Tensor:
    """Return the `certainty` of the rotations, (n,)."""
    return certainty(evidence.rotations)


ENTRY = Term(measure, paper="Golan and El-Yaniv 2018", weight=weight, needs_latent=False)
