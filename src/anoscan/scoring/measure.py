"""Fit the terms to normal images, and measure the terms of query images."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from anoscan.core import registry
from anoscan.core.arrays import Floats
from anoscan.core.runtime import exact_float32
from anoscan.images.decode import ImageRule
from anoscan.networks.architectures import Networks
from anoscan.scoring.choices import ENCODER, Inversion
from anoscan.scoring.maps import Maps
from anoscan.scoring.search import latents
from anoscan.scoring.terms import ROWS, Evidence, Tensors, Term

CHUNK = 64
_OUTPUTS = ("x_hat", "features", "features_hat", "backbone", "rotations")  # of `Evidence`


@dataclass(frozen=True)
class Measured:
    """The terms of images, and their reconstructions, residuals and maps, in the same order.

    Parameters
    ----------
    terms : ndarray of shape (n, k), float64
        The raw, unscaled terms; not a number where a term was not asked for.
    x_hat : ndarray of shape (n, c, s, s), float32 in [-1, 1]
    residual : ndarray of shape (n, s, s), float32 >= 0
        The absolute difference of image and reconstruction, as a mean over channels.
    weights : ndarray of shape (n, k), float64
        The result of `Term.weight` for each image, and 1 for terms without that function.
    anomaly_map : ndarray of shape (n, s, s), float32
        The maps; empty where they are not wanted.
    """

    terms: np.ndarray
    x_hat: np.ndarray
    residual: np.ndarray
    weights: np.ndarray
    anomaly_map: np.ndarray


def terms_of(
    *, rotated: bool, patches: bool, backbone: bool = False, game: bool = True
) -> tuple[str, ...]:
    """Return the names of the terms that a model has, sorted.

    `rotation` is left out unless the discriminator learned to predict rotations (`rotated`). Terms
    that are not `Term.of_patches` are left out of a model of patches, those that are
    `Term.of_backbone` out of a model without a pretrained network, and those that need a latent out
    of a model without a trained GAN (`game`).
    """

    def has(name: str) -> bool:
        term: Term = registry.load("terms", name)
        return (
            (rotated or name != "rotation")
            and (term.of_patches or not patches)
            and (backbone or not term.of_backbone)
            and (game or not term.needs_latent)
        )

    return tuple(name for name in registry.names("terms") if has(name))


def fit_terms(
    networks: Networks, names: Sequence[str], batches: Iterable[Tensor]
) -> dict[str, Tensors]:
    """Fit terms in one pass over images; return what `Term.measure` needs, by the name of the term.

    Parameters
    ----------
    networks : Networks
    names : sequence of str
    batches : iterable of Tensor of shape (n, c, s, s)
        The normal training images, in [-1, 1], on the device of the networks.
    """
    return fit_sums([term_sums(networks, names, batches)])


def term_sums(
    networks: Networks, names: Sequence[str], batches: Iterable[Tensor]
) -> dict[str, Tensors]:
    """Compute the sums of terms over normal images, for `fit_sums`; see `fit_terms`."""
    terms: dict[str, Term] = {name: registry.load("terms", name) for name in names}
    totals: dict[str, Tensors] = {name: {} for name in terms}
    rows: dict[str, list[Tensor]] = {name: [] for name in terms}
    with exact_float32():
        for batch in batches:
            evidence = Evidence(networks, batch)
            for name, term in terms.items():
                for key, value in term.sums(evidence).items():
                    if key == ROWS:
                        rows[name].append(value)
                    else:
                        totals[name][key] = totals[name].get(key, torch.zeros_like(value)) + value
    for name, found in rows.items():
        if found:
            totals[name][ROWS] = torch.cat(found)
    return totals


def fit_sums(parts: Sequence[dict[str, Tensors]]) -> dict[str, Tensors]:
    """Fit terms to the sums of several sets of images together."""
    fitted = {}
    with exact_float32():
        for name in parts[0]:
            term: Term = registry.load("terms", name)
            fitted[name] = term.fit(_together([part[name] for part in parts]))
    return fitted


def _together(parts: Sequence[Tensors]) -> Tensors:
    found = {}
    for key in parts[0]:
        values = [part[key] for part in parts]
        found[key] = torch.cat(values) if key == ROWS else torch.stack(values).sum(0)
    return found


@dataclass(frozen=True)
class Measurer:
    """The networks and fitted statistics that measure an image, all on one device.

    Parameters
    ----------
    networks : Networks
    fitted : dict of str to dict
        What `Term.measure` needs, by the name of the term. Columns of measured terms have this
        order.
    rule : ImageRule
    maps : Maps, optional
        The fitted anomaly maps; without them no maps can be measured.
    """

    networks: Networks
    fitted: dict[str, Tensors]
    rule: ImageRule
    maps: Maps | None = None

    @property
    def device(self) -> torch.device:
        """Device of the networks."""
        return next(self.networks.discriminator.parameters()).device

    def measure(
        self,
        x: Tensor,
        how: Inversion = ENCODER,
        *,
        mapped: bool = False,
        only: Collection[str] | None = None,
    ) -> Measured:
        """Measure images (n, c, s, s) in [-1, 1] on the device; see `of_evidence`."""
        return self.of_evidence(self.evidence(x, how, only), mapped=mapped, only=only)

    def evidence(
        self, x: Tensor, how: Inversion = ENCODER, only: Collection[str] | None = None
    ) -> Evidence:
        """Run the networks on images (n, c, s, s), as far as terms, or `only` some, need them."""
        with exact_float32():
            z = latents(self.networks, x, how)
            # What a search minimised is measured as it is, without a correction.
            x_hat = None if how.mapping == "encoder" else self.networks.mirror[1](z)
            evidence = Evidence(self.networks, x, z=z, x_hat=x_hat)
            asked = self.fitted.keys() if only is None else only
            needless = set() if "rotation" in asked else {"rotations"}
            if not any(registry.load("terms", name).needs_latent for name in asked):
                needless.add("features_hat")
            for name in _OUTPUTS:
                if name not in needless:
                    getattr(evidence, name)
        return evidence

    def of_evidence(
        self, evidence: Evidence, *, mapped: bool = False, only: Collection[str] | None = None
    ) -> Measured:
        """Measure what networks returned for images.

        Their maps are measured where `mapped`, and `only` these terms where given.
        """
        n, width = len(evidence.x), len(self.fitted)
        terms = evidence.x.new_full((n, width), torch.nan, dtype=torch.float64)
        weights = evidence.x.new_ones((n, width), dtype=torch.float64)
        with exact_float32():
            for column, (name, fitted) in enumerate(self.fitted.items()):
                if only is not None and name not in only:
                    continue
                term: Term = registry.load("terms", name)
                terms[:, column] = term.measure(evidence, fitted)
                if term.weight is not None:
                    weights[:, column] = term.weight(evidence)
            return Measured(
                terms.cpu().numpy(),
                evidence.x_hat.cpu().numpy(),
                residual(evidence).cpu().numpy(),
                weights.cpu().numpy(),
                self.maps.measure(evidence)
                if mapped and self.maps
                else np.empty((n, 0, 0), np.float32),
            )

    def terms(self, pixels: Floats, rows: np.ndarray | None = None) -> np.ndarray:
        """Return raw terms (n, k), float64, of images (n, c, s, s); with `rows`, of these alone."""
        rows = np.arange(len(pixels)) if rows is None else rows
        batches = chunks(rows, pixels.__getitem__, self.device)
        return np.concatenate([self.measure(x).terms for x in batches])


def residual(evidence: Evidence) -> Tensor:
    """Return the absolute residual |x - G(z)|, as a mean over channels, (n, s, s)."""
    return (evidence.x - evidence.x_hat).abs().mean(1)


def chunks(
    rows: Sequence[int] | np.ndarray, read: Callable[[np.ndarray], np.ndarray], device: torch.device
) -> Iterator[Tensor]:
    """Yield at most `CHUNK` images (n, c, s, s) at a time; `read` returns those of some rows."""
    for start in range(0, len(rows), CHUNK):
        block = np.ascontiguousarray(read(np.asarray(rows[start : start + CHUNK])))
        yield torch.from_numpy(block).to(device)


def smooth(residuals: np.ndarray) -> np.ndarray:
    """Blur residuals (n, s, s) by one pixel, so that a single noisy pixel makes no region."""
    from scipy import ndimage  # slow to load, and not needed to score

    blurred: np.ndarray = ndimage.gaussian_filter(residuals, sigma=(0, 1, 1), mode="nearest")
    return blurred
