"""Score images with other packages, for ``python -m benchmarks.speed --peers``.

The environment needs anomalib 2.7 and PyOD 3.6 beside anoscan. All files are decoded like anoscan's
own. Weights do not change how long a pass takes, so networks are hardly trained.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

import numpy as np
import torch
from anomalib.models.image.ganomaly.torch_model import GanomalyModel
from anomalib.models.image.padim.torch_model import PadimModel
from pyod.models.anogan import AnoGAN
from torch import Tensor
from torch.nn import functional

from anoscan.scoring.choices import BATCH_SIZE

LATENT = 100  # default of anomalib's GANomaly
Work = Callable[[Iterable[np.ndarray]], None]


def peers(normal: np.ndarray) -> dict[str, Work]:
    """Return the peers, by name, after a fit to normal images (n, c, s, s) in [-1, 1].

    Each takes images (c, s, s), and scores them.
    """
    side = _side(normal.shape[-1])
    ganomaly = GanomalyModel((side, side), normal.shape[1], 64, LATENT).eval()
    padim = _padim(_sized(torch.from_numpy(normal)))
    anogan = AnoGAN(epochs=1, device=torch.device("cpu")).fit(normal.reshape(len(normal), -1))

    def anogan_scores(images: Iterable[np.ndarray]) -> None:
        anogan.decision_function(np.stack([image.ravel() for image in images]))

    return {
        "GANomaly": lambda images: _passes(ganomaly, images),
        "PaDiM": lambda images: _passes(padim, images),
        "PyOD AnoGAN": anogan_scores,
    }


def _padim(normal: Tensor) -> PadimModel:
    """Fit PaDiM with a ResNet-18 of random weights; its Gaussians need a batch of images."""
    layers = ["layer1", "layer2", "layer3"]
    model = PadimModel(backbone="resnet18", layers=layers, pre_trained=False)
    model.train()
    with torch.no_grad():
        for batch in _rgb(normal).split(BATCH_SIZE):
            model(batch)
    model.fit()
    return model.eval()


def _passes(model: torch.nn.Module, images: Iterable[np.ndarray]) -> None:
    with torch.inference_mode():
        for batch in _batches(images):
            sized = _sized(batch)
            model(_rgb(sized) if isinstance(model, PadimModel) else sized)


def _batches(images: Iterable[np.ndarray]) -> Iterator[Tensor]:
    waiting: list[np.ndarray] = []
    for image in images:
        waiting.append(image)
        if len(waiting) == BATCH_SIZE:
            yield torch.from_numpy(np.stack(waiting))
            waiting = []
    if waiting:
        yield torch.from_numpy(np.stack(waiting))


def _side(side: int) -> int:
    return max(32, side)  # GANomaly halves sides down to 4 or less


def _sized(images: Tensor) -> Tensor:
    size = (_side(images.shape[-1]),) * 2
    return images if images.shape[-2:] == size else functional.interpolate(images, size)


def _rgb(images: Tensor) -> Tensor:
    return images.expand(-1, 3, -1, -1) if images.shape[1] == 1 else images
