"""How unsure the discriminator is which way up the image is: four quarter turns, each to be named.

Golan and El-Yaniv 2018, "Deep Anomaly Detection Using Geometric Transformations" (arXiv
1805.10917), and Hendrycks et al. 2019 (arXiv 1906.12340), section 4: a network that learned to
name the turns of normal images is less sure of others. It costs three more passes of the
discriminator and no other network.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from anoscan.scoring.terms import Evidence, Tensors, Term


def measure(evidence: Evidence, fitted: Tensors) -> Tensor:
    """Exp of minus the mean margin of the right turn over the mean of all, (n,).

    The margin (right logit minus mean logit) does not saturate where probabilities are all one.
    """
    rotations = evidence.rotations.double()
    right = rotations.diagonal(dim1=1, dim2=2)
    margin = (right - rotations.mean(2)).mean(1)
    return torch.exp(-margin)


def certainty(rotations: Tensor) -> Tensor:
    """1 - cross-entropy / log 4 of logits (n, 4, 4) of turned images, (n,).

    1 for a task learned, 0 for guessing, negative for worse than guessing.
    """
    right = rotations.double().log_softmax(2).diagonal(dim1=1, dim2=2)
    return 1 + right.mean(1) / math.log(4)


def weight(evidence: Evidence) -> Tensor:
    """`certainty` of the turns, (n,)."""
    return certainty(evidence.rotations)


ENTRY = Term(measure, paper="Golan and El-Yaniv 2018", weight=weight, needs_latent=False)
