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

# Images that terms are fitted to, at most; more would take longer and change little. The last two
# are for terms of a pretrained network and of reconstructions, whose networks cost most.
MOST, MOST_OF_BACKBONE, MOST_RECONSTRUCTED = 8192, 4096, 1024


def fit_all(
    networks: Networks,
    names: Sequence[str],
    pixels: Floats,
    rows: np.ndarray,
    seed: int,
    device: torch.device,
) -> tuple[dict[str, Tensors], Baselines]:
    """Fit terms and baselines to rows of `pixels` (n, c, s, s), in [-1, 1].

    Terms see at most `MOST` of the rows, evenly chosen, those that are `Term.of_backbone` at most
    `MOST_OF_BACKBONE`, and those that `Term.needs_latent` at most `MOST_RECONSTRUCTED`.

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
    most = {name: _most(name, len(rows)) for name in names}
    fitted: dict[str, Tensors] = {}
    for count in sorted(set(most.values())):
        some = chunks(evenly(rows, count), pixels.__getitem__, device)
        fitted |= fit_terms(networks, [name for name in names if most[name] == count], some)
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


def _most(name: str, count: int) -> int:
    """Return the number of images, of `count`, that a term is fitted to."""
    term = _term(name)
    if term.of_backbone:
        return min(count, MOST_OF_BACKBONE)
    return min(count, MOST_RECONSTRUCTED if term.needs_latent else MOST)


def _term(name: str) -> Term:
    term: Term = registry.load("terms", name)
    return term
