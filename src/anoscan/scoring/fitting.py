"""Fit the terms and the baselines to the same normal images."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import torch

from anoscan.core import registry
from anoscan.core.arrays import Floats, evenly
from anoscan.core.runtime import exact_float32
from anoscan.networks.architectures import Networks
from anoscan.scoring.baselines import Baselines
from anoscan.scoring.measure import chunks, fit_terms
from anoscan.scoring.terms import Tensors, Term

MOST_OF_BACKBONE = 4096  # images that terms of a pretrained network are fitted to, at most


def fit_all(
    networks: Networks,
    names: Sequence[str],
    pixels: Floats,
    rows: np.ndarray,
    seed: int,
    device: torch.device,
) -> tuple[dict[str, Tensors], Baselines]:
    """Fit terms and baselines to rows of `pixels` (n, c, s, s), in [-1, 1].

    Terms that are `Term.of_backbone` see at most `MOST_OF_BACKBONE` of the rows, evenly chosen.

    Parameters
    ----------
    networks : Networks
    names : sequence of str
        The names of the terms.
    pixels : ndarray of shape (n, c, s, s), float32
    rows : ndarray of int
    seed : int
        The seed of the baselines.
    device : torch.device
        The device of the networks.
    """
    pretrained = [name for name in names if _term(name).of_backbone]
    own = [name for name in names if name not in pretrained]
    fitted = fit_terms(networks, own, chunks(rows, pixels.__getitem__, device))
    if pretrained:
        some = chunks(evenly(rows, MOST_OF_BACKBONE), pixels.__getitem__, device)
        fitted |= fit_terms(networks, pretrained, some)
    components, baselines = fit_components(names, pixels, rows, seed, device)
    fitted |= components
    return {name: fitted[name] for name in names}, baselines


def fit_components(
    names: Iterable[str], pixels: Floats, rows: np.ndarray, seed: int, device: torch.device
) -> tuple[dict[str, Tensors], Baselines]:
    """Fit baselines, and those of the named terms that have `Term.on_components`; see `fit_all`."""
    baselines = Baselines.fit(pixels, rows, seed)
    components = baselines.tensors(device)
    fits = {name: _term(name).on_components for name in names}
    with exact_float32():
        inside = torch.cat(
            [
                (x.flatten(1) - components["mean"]) @ components["components"].T
                for x in chunks(rows, pixels.__getitem__, device)
            ]
        )
        fitted = {name: fit(components, inside) for name, fit in fits.items() if fit}
    return shared(fitted, baselines, device), baselines


def shared(
    fitted: Mapping[str, Tensors], baselines: Baselines, device: torch.device
) -> dict[str, Tensors]:
    """Return fitted terms; those with `Term.on_components` have the tensors of baselines too."""
    components = baselines.tensors(device)
    return {
        name: stats | components if _term(name).on_components else stats
        for name, stats in fitted.items()
    }


def own(fitted: Mapping[str, Tensors]) -> dict[str, Tensors]:
    """Return fitted terms without the tensors that `shared` added; models store these once."""
    return {
        name: {key: value for key, value in stats.items() if key not in ("mean", "components")}
        if _term(name).on_components
        else stats
        for name, stats in fitted.items()
    }


def _term(name: str) -> Term:
    term: Term = registry.load("terms", name)
    return term
