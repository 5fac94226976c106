"""Mahalanobis distance of local features of the pretrained network, where it is highest.

Every place of the maps at strides of 8 and 16 pixels has a Gaussian, as in ``local`` (PaDiM, Defard
et al. 2021, arXiv 2011.08785, with one Gaussian for each of two maps).
"""

from __future__ import annotations

from torch import Tensor

from anoscan.scoring.terms import Evidence, Forms, Tensors, Term, local


def blocks(evidence: Evidence) -> list[Tensor]:
    """Return the two maps that small defects are seen in; none without a pretrained network."""
    return evidence.backbone[1:3]


def sums(evidence: Evidence) -> Tensors:
    """Return the sums of `local.sums_of` for the two maps."""
    return local.sums_of(blocks(evidence))


def forms(evidence: Evidence) -> Forms:
    """Return what the means and whitenings of the places of each map are like."""
    return local.forms_of(blocks(evidence))


def measure(evidence: Evidence, fitted: Tensors) -> Tensor:
    """Return how far the worst places exceed the others, (n,), as a geometric mean over maps."""
    return local.measure_of(evidence, blocks(evidence), fitted)


ENTRY = Term(
    measure,
    paper="Defard et al. 2021",
    sums=sums,
    fit=local.fit,
    forms=forms,
    narrow=True,
    least_weight=0.5,  # a patch of the same texture looks natural, and a defect in it does not
    needs_latent=False,
    of_backbone=True,
)
