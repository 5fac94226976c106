"""Measure how well the networks of a training learned, in numbers that `health` puts into words.

Most numbers compare training images with held-out normals, which no network has seen.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn
from torch.nn.functional import adaptive_avg_pool2d

from anoscan.core.arrays import Floats
from anoscan.core.config import TrainConfig
from anoscan.core.runtime import exact_float32, random_stream
from anoscan.dataset.material import Material
from anoscan.networks.architectures import Networks
from anoscan.networks.gan_stage import sample, samples
from anoscan.scoring.baselines import Baselines
from anoscan.scoring.measure import chunks

SAMPLES = 512  # generated images that are used, and at most as many real ones of each kind
MOST_PIXELS = SAMPLES * 128 * 128  # pixels of images used at full size; of larger images, fewer are
NEIGHBOURS = 8192  # training images, at most, among which a nearest one is searched
THUMBNAIL = 16  # side at which images are compared, in pixels
MARGIN = 3  # standard errors: a smaller margin is too uncertain to divide by
STILL = 1e-4  # share of the largest realness: if no images differ by more, gradients vanished
TWIN = 0.002  # near twins are closer than this share of the mean squared distance from the mean


@dataclass(frozen=True)
class NetworkChecks:
    """Numbers of one training, which `health` judges.

    Parameters
    ----------
    pca : float
        Mean squared residual of held-out images by PCA, relative to that of the mean image.
    copied : float
        Estimated share of generated images that copy training images, in [0, 1]; see `copied`.
    gap : float
        Mean squared residual of held-out images, relative to that of training images.
    inversion : float
        Mean squared residual of generated images, relative to their variance. It measures the
        encoder alone, because the generator can make these images.
    """

    pca: float
    copied: float
    gap: float
    inversion: float


def examine(
    networks: Networks, baselines: Baselines, material: Material, config: TrainConfig
) -> NetworkChecks:
    """Compare generated, training and held-out images, by frozen networks and fitted baselines."""
    seed, full = config.seed, in_full(SAMPLES, material.pixels.shape[-1])
    some = material.pixels[_some(material.rows, full, seed)]
    held = material.pixels[_some(material.unseen, full, seed)]
    fake, drawn = _generated(networks.generator, config, full)
    known, unknown = _all_thumbnails(material, seed)
    variance = float(fake.var(0).mean())
    missed = baselines.scores(held)
    return NetworkChecks(
        pca=float(missed["pca"].mean()) / max(float(missed["mean_image"].mean()), 1e-12),
        copied=copied(drawn, known, unknown),
        gap=_missed(networks, held) / max(_missed(networks, some), 1e-12),
        inversion=_missed(networks, fake) / max(variance, 1e-12),
    )


def twins(material: Material, seed: int) -> float:
    """Return the share of held-out images that have a near twin among the training images."""
    known, unknown = _all_thumbnails(material, seed)
    squares, _ = nearest(unknown, known)
    spread = float(np.square(known - known.mean(0)).sum(1).mean())
    return float((squares < TWIN * spread).mean())


@dataclass(frozen=True)
class Game:
    """State of the generator and the discriminator during or after the GAN stage.

    Parameters
    ----------
    diversity : float
        Pixel variance of generated images, relative to that of training images.
    separated : float or None
        AUROC of the discriminator at distinguishing training images from generated ones. None where
        it judges pairs of image and latent, or generated images are not finite.
    by_heart : float or None
        Share of the discriminator's margin between training and generated images that is lost on
        held-out images. 0 means that it learned what is real, 1 that it learned the training images
        by heart (Karras et al. 2020, arXiv 2006.06676, eq. 1, r_v). None where `separated` is None,
        or the margin is below `MARGIN` standard errors.
    still : bool
        Whether the discriminator gives all images the same realness, because its gradients
        vanished. Then an AUROC near 0.5 does not mean that the generator is good.
    """

    diversity: float
    separated: float | None
    by_heart: float | None
    still: bool = False


def game(
    generator: nn.Module,
    discriminator: nn.Module | None,
    material: Material,
    config: TrainConfig,
    *,
    images: int,
) -> Game:
    """Measure the state of the GAN stage, during or after it; the networks are not changed.

    `discriminator` gives the realness of images; it is None where it judges pairs of image and
    latent. At most `images` of each kind are compared; see `in_full`.
    """
    from sklearn.metrics import roc_auc_score

    seed, images = config.seed, in_full(images, material.pixels.shape[-1])
    some = material.pixels[_some(material.rows, images, seed)]
    at_rest = copy.deepcopy(generator).eval()
    fake = sample(at_rest, images, config.latent_dim, seed, "game").cpu().numpy()
    varied = float(fake.var(0).mean()) / max(float(some.var(0).mean()), 1e-12)
    if discriminator is None or not np.isfinite(fake).all():
        return Game(varied, None, None)
    held = material.pixels[_some(material.unseen, images, seed)]
    judge = copy.deepcopy(discriminator).eval()
    real, of_fake, of_held = (_realness(judge, x) for x in (some, fake, held))
    realness = np.concatenate([real, of_fake])
    truth = np.arange(len(realness)) < len(real)
    margin = float(real.mean() - of_fake.mean())
    told = margin > MARGIN * float(np.sqrt(real.var() / len(real) + of_fake.var() / len(of_fake)))
    return Game(
        diversity=varied,
        separated=float(roc_auc_score(truth, realness)),
        by_heart=float(np.clip((real.mean() - of_held.mean()) / margin, 0, 1)) if told else None,
        still=bool(np.ptp(realness) <= STILL * np.abs(realness).max()),
    )


def in_full(images: int, side: int) -> int:
    """Limit a number of images with this side, so that they have at most `MOST_PIXELS` pixels."""
    return min(images, MOST_PIXELS // side**2)


def _generated(generator: nn.Module, config: TrainConfig, full: int) -> tuple[Floats, np.ndarray]:
    """Generate `SAMPLES` images; return the first `full` (n, c, s, s), and thumbnails of all."""
    kept, small, missing = [], [], full
    for images in samples(generator, SAMPLES, config.latent_dim, config.seed, "checkup"):
        part = images.cpu().numpy()
        small.append(thumbnails(part))
        if missing:
            kept.append(part[:missing])
            missing -= len(kept[-1])
    return np.concatenate(kept), np.concatenate(small)


def _all_thumbnails(material: Material, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return `thumbnails` of training images and of held-out images, at most so many of each."""
    known = _thumbnails_of(material, _some(material.rows, NEIGHBOURS, seed))
    return known, _thumbnails_of(material, _some(material.unseen, SAMPLES, seed))


def _thumbnails_of(material: Material, rows: np.ndarray) -> np.ndarray:
    cpu = torch.device("cpu")
    parts = chunks(rows, material.pixels.__getitem__, cpu)
    return np.concatenate([thumbnails(part.numpy()) for part in parts])


def thumbnails(images: Floats) -> np.ndarray:
    """Shrink images (n, c, s, s) to vectors (n, d), float64, which are near for similar images."""
    small = adaptive_avg_pool2d(torch.from_numpy(images), min(THUMBNAIL, images.shape[-1]))
    flat: np.ndarray = small.flatten(1).numpy().astype(np.float64)
    return flat


def copied(fake: np.ndarray, known: np.ndarray, unknown: np.ndarray) -> float:
    """Estimate the share of generated images that copy a training image, in [0, 1].

    A generator that copies nothing does not depend on which images were held out. So its images are
    nearest to a held-out image as often as held-out images are among all real images. What is
    missing of that share was copied. The distance itself would say nothing, because blurred images
    are near to all. An image that is farther from all real images than training images are from
    their mean (such as noise) is no copy.

    Parameters
    ----------
    fake, known, unknown : ndarray of shape (n, d)
        Generated, training and held-out images, as `thumbnails` makes them.
    """
    expected = len(unknown) / (len(known) + len(unknown))
    to_unknown, to_known = nearest(fake, unknown)[0], nearest(fake, known)[0]
    alike = np.minimum(to_unknown, to_known) < known.var(0).sum()
    if not alike.any():
        return 0.0
    found = float((to_unknown < to_known)[alike].mean())
    return float(np.clip(1 - found / expected, 0, 1) * alike.mean())


def nearest(points: np.ndarray, among: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Find the nearest of the points `among` (m, d) for each of `points` (n, d).

    Returns the squared distance (n,) to it, and its row (n,) in `among`.
    """
    squares = np.square(points).sum(1)[:, None] + np.square(among).sum(1) - 2 * points @ among.T
    which = squares.argmin(1)
    return np.maximum(squares[np.arange(len(points)), which], 0), which


def _some(rows: np.ndarray, most: int, seed: int) -> np.ndarray:
    if len(rows) <= most:
        return rows
    drawn = torch.randperm(len(rows), generator=random_stream(seed, "checkup-rows"))[:most].numpy()
    return np.asarray(rows[np.sort(drawn)])


def _realness(discriminator: nn.Module, images: Floats) -> np.ndarray:
    device = next(discriminator.parameters()).device
    with exact_float32():
        batches = chunks(np.arange(len(images)), images.__getitem__, device)
        return np.concatenate([discriminator(batch).cpu().numpy() for batch in batches])


def reconstruction_error(networks: Networks, material: Material, config: TrainConfig) -> float:
    """Return the mean squared residual of training images, relative to that of the mean image.

    The modes of the networks are restored afterwards.
    """
    rows = _some(material.rows, in_full(SAMPLES, material.pixels.shape[-1]), config.seed)
    images = material.pixels[rows]
    at_rest = copy.deepcopy(networks).frozen()
    return _missed(at_rest, images) / max(float(images.var(0).mean()), 1e-12)


def _missed(networks: Networks, images: Floats) -> float:
    device = next(networks.generator.parameters()).device
    total = 0.0
    with exact_float32():
        for x in chunks(np.arange(len(images)), images.__getitem__, device):
            x_hat = networks.reconstruct(x)
            total += float((x_hat - x).square().mean((1, 2, 3)).sum())
    return total / len(images)
