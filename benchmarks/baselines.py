"""Run simple detectors without a GAN, which take seconds and are compared with anoscan."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator

import numpy as np
import numpy.typing as npt
import torch
import torchvision
from sklearn.decomposition import PCA
from sklearn.ensemble import IsolationForest
from sklearn.metrics import roc_auc_score
from sklearn.neighbors import NearestNeighbors
from sklearn.svm import OneClassSVM
from torch import Tensor, nn
from torch.nn import functional

from anoscan.core.runtime import exact_float32, seeded
from benchmarks.data import Split

Images = npt.NDArray[np.float32]
Scores = npt.NDArray[np.float64]
Baseline = Callable[[Images, Images, int], Scores]

_SVM_IMAGES = 4000
_PADIM_IMAGES = 2000
_PADIM_CHANNELS = 100
_PADIM_RIDGE = 0.01
_PADIM_SIDE = 64
_BATCH = 50  # images; larger batches do not fit into the processor's cache


def as_float(images: npt.NDArray[np.uint8]) -> Images:
    """Scale pixels to [-1, 1], as every baseline takes them.

    Parameters
    ----------
    images : ndarray uint8 (n, h, w) or (n, h, w, 3)
        Grey or RGB images.

    Returns
    -------
    ndarray float32 (n, c, h, w), in [-1, 1]
    """
    scaled = images.astype(np.float32) / 127.5 - 1
    if images.ndim == 3:
        return scaled[:, None]
    return np.ascontiguousarray(scaled.transpose(0, 3, 1, 2))


def evaluate(
    split: Split, seed: int, names: Iterable[str] | None = None
) -> dict[str, dict[str, float]]:
    """Measure AUROC and cost of baselines on one split.

    Parameters
    ----------
    split : Split
        Split whose test images are partly normal and partly anomalous.
    seed : int
        Seed of all random choices. The same seed gives the same scores on the same machine.
    names : iterable of str, optional
        Keys of `BASELINES`; all by default.

    Returns
    -------
    dict
        For each baseline, ``auroc`` and ``cpu_seconds``. The latter is the CPU time of fitting and
        scoring, summed over all threads.
    """
    train, test = as_float(split.train), as_float(split.test)
    result = {}
    for name in BASELINES if names is None else names:
        start = time.process_time()
        scores = BASELINES[name](train, test, seed)
        seconds = time.process_time() - start
        auroc = float(roc_auc_score(split.anomalous, scores))
        result[name] = {"auroc": auroc, "cpu_seconds": seconds}
    return result


def _flat(images: Images) -> Images:
    return images.reshape(len(images), -1)


def _fit_pca(train: Images, seed: int) -> PCA:
    # In tiny sets, as many components as pixels or images would leave no residual.
    components = max(1, min(64, min(_flat(train).shape) // 2))
    return PCA(components, svd_solver="randomized", random_state=seed).fit(_flat(train))


def _mean_image(train: Images, test: Images, seed: int) -> Scores:
    difference = _flat(test) - _flat(train).mean(axis=0, dtype=np.float64)
    return np.asarray(np.square(difference).mean(axis=1))


def _brightness(train: Images, test: Images, seed: int) -> Scores:
    means = _flat(test).mean(axis=1, dtype=np.float64)
    return np.asarray(np.abs(means - train.mean(dtype=np.float64)))


def _darkness(train: Images, test: Images, seed: int) -> Scores:
    # That dark images are anomalous is known from labels: solar cells with defects are dark.
    return np.asarray(-_flat(test).mean(axis=1, dtype=np.float64))


def _pca(train: Images, test: Images, seed: int) -> Scores:
    pca = _fit_pca(train, seed)
    rebuilt = pca.inverse_transform(pca.transform(_flat(test)))
    return np.asarray(np.square(_flat(test) - rebuilt).mean(axis=1, dtype=np.float64))


def _isolation_forest(train: Images, test: Images, seed: int) -> Scores:
    forest = IsolationForest(random_state=seed).fit(_flat(train))
    return np.asarray(-forest.score_samples(_flat(test)), dtype=np.float64)


def _nearest(train: Images, test: Images, seed: int) -> Scores:
    pca = _fit_pca(train, seed)
    neighbours = NearestNeighbors(n_neighbors=1, algorithm="brute")
    neighbours.fit(pca.transform(_flat(train)))
    distances, _ = neighbours.kneighbors(pca.transform(_flat(test)))
    return np.asarray(distances[:, 0], dtype=np.float64)


def _one_class_svm(train: Images, test: Images, seed: int) -> Scores:
    pca = _fit_pca(train, seed)
    svm = OneClassSVM(nu=0.1, gamma="scale")
    svm.fit(pca.transform(_flat(_sample(train, _SVM_IMAGES, seed))))
    return np.asarray(-svm.score_samples(pca.transform(_flat(test))), dtype=np.float64)


def _sample(images: Images, count: int, seed: int) -> Images:
    if len(images) <= count:
        return images
    return images[np.random.default_rng(seed).choice(len(images), count, replace=False)]


def _padim(train: Images, test: Images, seed: int) -> Scores:
    """Score by PaDiM (Defard et al., 2020) on random features: the highest distance of a place."""
    with seeded(seed, "padim"):
        network = _RandomFeatures()
    with exact_float32():
        mean, whitening = _gaussians(network, _sample(train, _PADIM_IMAGES, seed))
        scores = [
            torch.bmm(whitening, features - mean).square().sum(dim=1).amax(dim=0)
            for features in network.cells(test)
        ]
    return torch.cat(scores).sqrt().double().numpy()


class _RandomFeatures(nn.Module):
    """Computes features: random channels of the first three stages of an untrained ResNet-18."""

    def __init__(self) -> None:
        super().__init__()
        resnet = torchvision.models.resnet18(weights=None)
        stem = nn.Sequential(resnet.conv1, resnet.bn1, resnet.relu, resnet.maxpool)
        self.stages = nn.ModuleList(
            [nn.Sequential(stem, resnet.layer1), resnet.layer2, resnet.layer3]
        )
        self.chosen = torch.randperm(64 + 128 + 256)[:_PADIM_CHANNELS]
        self.eval().to(memory_format=torch.channels_last)

    def forward(self, images: Tensor) -> Tensor:
        """Compute features (n, channels, 16, 16) of images (n, 3, 64, 64)."""
        maps = []
        for stage in self.stages:
            images = stage(images)
            maps.append(images)
        grid = maps[0].shape[-2:]
        joined = torch.cat([functional.interpolate(each, grid) for each in maps], dim=1)
        return joined[:, self.chosen]

    def cells(self, images: Images) -> Iterator[Tensor]:
        """Yield features (cells, channels, b) of each batch of b images."""
        for start in range(0, len(images), _BATCH):
            batch = torch.from_numpy(images[start : start + _BATCH]).expand(-1, 3, -1, -1)
            size = (_PADIM_SIDE, _PADIM_SIDE)
            batch = functional.interpolate(batch, size, mode="bilinear", antialias=True)
            features = self(batch.contiguous(memory_format=torch.channels_last))
            yield features.flatten(2).permute(2, 1, 0).contiguous()


def _gaussians(network: _RandomFeatures, train: Images) -> tuple[Tensor, Tensor]:
    """Fit a Gaussian to the features of each place (cell) in the training images.

    Returns
    -------
    mean, whitening : Tensor, float32
        Mean (cells, channels, 1), and inverse Cholesky factor (cells, channels, channels) of the
        covariance.
    """
    shift: Tensor | None = None
    total, products = torch.zeros(()), torch.zeros(())
    for features in network.cells(train):
        # Features are centred first, because squares of large numbers lose digits in float32.
        shift = features.mean(dim=2, keepdim=True) if shift is None else shift
        centred = features - shift
        total = total + centred.sum(dim=2, keepdim=True).double()
        products = products + torch.bmm(centred, centred.mT).double()
    assert shift is not None
    mean = total / len(train)
    ridge = _PADIM_RIDGE * torch.eye(_PADIM_CHANNELS, dtype=torch.float64)
    covariance = (products - len(train) * mean * mean.mT) / max(1, len(train) - 1) + ridge
    whitening = torch.linalg.inv(torch.linalg.cholesky(covariance))
    return (shift + mean).float(), whitening.float()


BASELINES: dict[str, Baseline] = {
    "mean-image": _mean_image,
    "brightness": _brightness,
    "darkness": _darkness,
    "pca-64": _pca,
    "iforest": _isolation_forest,
    "knn-pca": _nearest,
    "ocsvm-pca": _one_class_svm,
    "padim-random": _padim,
}
