"""Distance from the nearest of several kinds of normal images, by a mixture of Gaussians.

Normal images may be of several kinds. One Gaussian takes all that lies between the kinds for
normal, and one subspace all that mixes them; a mixture does not. The term counts only where normal
images are of several kinds. Then it counts more than any other. It is fitted to the largest
principal components of the pixels, which are those of `scoring.baselines.Baselines` (Bishop 1994,
"Novelty detection and neural network validation").
"""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from anoscan.core.tensors import Like
from anoscan.scoring.terms import Evidence, Forms, Tensors, Term

if TYPE_CHECKING:
    from sklearn.mixture import GaussianMixture

COMPONENTS = 32
IMAGES_A_COMPONENT = 4  # with fewer images a component, a Gaussian would learn the images by heart
IMAGES_A_KIND = 125
MOST_KINDS = 40
MOST_IMAGES = 16_384  # images that the mixture is fitted to, at most, evenly chosen
SHRINKAGE = 0.1  # added variance, as a share of the mean variance of the components
LEAST = 0.6  # share of the mean number of images a kind; smaller kinds may be of anomalies
FITS = 3  # mixtures that are taken together: where one ends depends on where it starts
ROUNDS = 20  # of expectation and maximisation
SEVERAL = 0.4  # nats a component; from this gain on, images may be of several kinds
# They are where no kind holds more than `ALONE` of them, after kinds were merged of which more than
# `MISTAKEN` of the images of one pass for images of the other.
ALONE, MISTAKEN = 0.8, 0.007
# From this side on, in pixels, anomalies are often small. There a term that sees the image as a
# whole must not drown those that see its places.
LARGE = 64
FARTHEST = 300.0  # keeps the exponential finite


def on_components(components: Tensors, inside: Tensor) -> Tensors:
    """Fit a mixture of Gaussians to the coordinates (n, k) of images.

    Returns
    -------
    dict of float32 tensors
        ``centres`` (m, d) and ``whiten`` (m, d, d) of m Gaussians in the d largest components, and
        ``height`` (m,), the logarithm of the density of each at its centre, relative to the highest
        of these. ``gain`` () says how much better than one Gaussian a mixture describes images that
        it was not fitted to: the mean logarithm of the ratio of densities, divided by d. It is 0
        where the kinds are not apart.
    """
    some = inside[:: -(-len(inside) // MOST_IMAGES)].cpu().double().numpy()
    some = some[:, : max(1, min(COMPONENTS, len(some) // IMAGES_A_COMPONENT))]
    gain = _gain(some)
    # Where one Gaussian does, the term does not count; see `factor`.
    kinds = len(some) // IMAGES_A_KIND if gain >= SEVERAL else 1
    fits = [_fit(some, kinds, draw) for draw in range(FITS if kinds > 1 else 1)]
    shares = np.concatenate([mixture.weights_ for mixture in fits])
    kept = shares >= LEAST / len(fits[0].weights_)
    whiten = torch.from_numpy(np.concatenate([m.precisions_cholesky_ for m in fits])[kept])
    height = torch.from_numpy(shares[kept]).log()
    height = height + whiten.diagonal(dim1=1, dim2=2).log().sum(1)
    numbers = {
        "centres": torch.from_numpy(np.concatenate([m.means_ for m in fits])[kept]),
        "whiten": whiten,
        "height": height - height.max(),
        "gain": torch.tensor(gain),
    }
    return {name: value.float().to(inside.device) for name, value in numbers.items()}


def _gain(places: np.ndarray) -> float:
    """Return the gain over one Gaussian on every fifth of places (n, d), by fits to the others.

    A mixture describes one bent cloud better than one Gaussian does, too. So the gain is 0 where
    its kinds are not apart.
    """
    new = np.arange(len(places)) % 5 == 0
    known, kinds = places[~new], int((~new).sum()) // IMAGES_A_KIND
    if kinds < 2:
        return 0.0
    several, one = _fit(known, kinds), _fit(known, 1)
    gain = float((several.score(places[new]) - one.score(places[new])) / places.shape[1])
    if gain < SEVERAL:
        return max(0.0, gain)
    fits = [several, *(_fit(known, kinds, draw) for draw in range(1, FITS))]
    largest = [_largest(fit.predict_proba(places[new])) for fit in fits]
    return gain if np.mean(largest) <= ALONE else 0.0


def _largest(shares: np.ndarray) -> float:
    """Return the share of images in the largest kind, after kinds that overlap were merged.

    `shares` (n, m) are the probabilities of the kinds of each image. The two kinds that are most
    often mistaken are merged, again and again, while more than `MISTAKEN` of the images of one pass
    for the other (Hennig 2010, "Methods for merging Gaussian mixture components").
    """
    shares = shares.copy()
    while shares.shape[1] > 1:
        taken_for = np.eye(shares.shape[1])[shares.argmax(1)]
        mistaken = (shares.T @ taken_for) / np.maximum(shares.sum(0), 1e-9)[:, None]
        np.fill_diagonal(mistaken, 0)
        one, other = np.unravel_index(mistaken.argmax(), mistaken.shape)
        if mistaken[one, other] <= MISTAKEN:
            break
        shares[:, one] += shares[:, other]
        shares = np.delete(shares, other, axis=1)
    return float(shares.mean(0).max())


def _fit(places: np.ndarray, kinds: int, draw: int = 0) -> GaussianMixture:
    """Fit a mixture of at most `MOST_KINDS` Gaussians to places (n, d); `draw` seeds its start."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.mixture import GaussianMixture

    mixture = GaussianMixture(
        max(1, min(MOST_KINDS, kinds)),
        reg_covar=SHRINKAGE * places.var(0).mean() + 1e-12,
        max_iter=ROUNDS,
        random_state=draw,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # a few rounds are enough
        return mixture.fit(places)


def forms(evidence: Evidence) -> Forms:
    """Return what the fitted tensors are like."""
    d = "components of the mixture"
    return {
        "centres": Like(("kinds", d)),
        "whiten": Like(("kinds", d, d)),
        "height": Like(("kinds",), high=0),
        "gain": Like((), low=0),
    }


def factor(fitted: Tensors, side: int) -> float:
    """Return 1 where normal images, of so many pixels a side, are small and of several kinds."""
    return float(side < LARGE and float(fitted["gain"]) >= SEVERAL)


def measure(evidence: Evidence, fitted: Tensors) -> Tensor:
    """Return the exponential of the distance of each image, (n,).

    The distance is the root of the squared Mahalanobis distance a component. For a mixture, that
    is what the logarithm of the density falls short of the highest one, times two.
    """
    centres, whiten = fitted["centres"].double(), fitted["whiten"].double()
    d = centres.shape[1]
    centred = evidence.x.flatten(1).double() - fitted["mean"].double()
    inside = centred @ fitted["components"][:d].double().T
    # One product for each Gaussian: (m, n, d) times (m, d, d).
    standard = (inside - centres[:, None]) @ whiten
    density = fitted["height"].double()[:, None] - standard.square().sum(2) / 2
    found = -2 / d * density.logsumexp(0)
    return found.clamp_min(0).sqrt().clamp_max(FARTHEST).exp()


ENTRY = Term(
    measure,
    paper="Bishop 1994",
    forms=forms,
    on_components=on_components,
    factor=factor,
    needs_latent=False,
    of_patches=False,
)
