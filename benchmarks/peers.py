"""Measure GANs of other packages on the same splits: ``python -m benchmarks.peers --help``.

The environment needs anomalib 2.7, PyOD 3.6 with pandas, and scikit-image, platformdirs and
filelock. anoscan itself comes from ``PYTHONPATH=src`` and never depends on these packages. Settings
are the defaults of each package, except for those that the functions here describe.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from importlib.metadata import version
from typing import Any

import numpy as np
import torch
from anomalib.models import Ganomaly
from anomalib.models.image.ganomaly.torch_model import GanomalyModel
from pyod.models.alad import ALAD
from pyod.models.anogan import AnoGAN
from sklearn.metrics import roc_auc_score
from torch import Tensor
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset

from benchmarks import cells, data
from benchmarks.baselines import Scores, as_float
from benchmarks.cells import Cell, keep

TRAINING_CPU_SECONDS = 120
_SIDE = 32
_BATCH = 32  # default of anomalib's Ganomaly
_SCORED_AT_ONCE = 256
_ANOGAN_IMAGES = 800  # 500 epochs and a search for each image take 143 CPU s; 2,000 images took 292

Scorer = Callable[[], Scores]
Trained = tuple[Scorer, dict[str, Any]]


def ganomaly(split: data.Split, seed: int) -> Trained:
    """Train anomalib's GANomaly on images of 32x32 pixels in [-1, 1], grey where the set is grey.

    Networks, losses and optimisers are anomalib's. The training step is that of its
    `training_step`, without Lightning. Some defaults of anomalib are not used:

    - Pixels are not normalised with ImageNet's mean and deviation. The decoder ends with a tanh,
      which cannot reach all of those values.
    - Images do not have 256x256 pixels, because a step would take 27 s.
    - The score is the raw one, because the score of `Engine.test` is scaled by the test set.
    """
    start = time.process_time()
    train = _resized(split.train)
    # Without a size, Ganomaly would first build the networks for 256x256, which need 2 GB.
    module = Ganomaly(pre_processor=Ganomaly.configure_pre_processor((_SIDE, _SIDE)))
    module.model = GanomalyModel((_SIDE, _SIDE), train.shape[1], 64, module.latent_vec_size)
    module.model.train()
    loader = DataLoader(TensorDataset(train), _BATCH, shuffle=True, drop_last=True)
    discriminator_optimiser, generator_optimiser = module.configure_optimizers()
    shown = 0
    while time.process_time() - start < TRAINING_CPU_SECONDS:
        for (batch,) in loader:
            _step(module, batch, discriminator_optimiser, generator_optimiser)
            shown += len(batch)
            if time.process_time() - start >= TRAINING_CPU_SECONDS:
                break

    def score() -> Scores:
        module.model.eval()
        with torch.no_grad():
            batches = _resized(split.test).split(_SCORED_AT_ONCE)
            scores = [module.model(batch).pred_score for batch in batches]
        return torch.cat(scores).double().numpy()

    return score, {"images_shown": shown, "side": _SIDE, "channels": train.shape[1]}


def _resized(images: data.Pixels) -> Tensor:
    size = (_SIDE, _SIDE)
    tensor = torch.from_numpy(as_float(images))
    return functional.interpolate(tensor, size, mode="bilinear", antialias=True)


def _step(
    module: Any,
    images: Tensor,
    discriminator_optimiser: torch.optim.Optimizer,
    generator_optimiser: torch.optim.Optimizer,
) -> None:
    model = module.model
    real, fake, latent, latent_again = model(images)
    judged_real, _ = model.discriminator(real)
    judged_fake, _ = model.discriminator(fake)
    loss = module.generator_loss(latent, latent_again, real, fake, judged_real, judged_fake)
    generator_optimiser.zero_grad()
    loss.backward(retain_graph=True)
    generator_optimiser.step()
    judged_fake, _ = model.discriminator(fake.detach())
    loss = module.discriminator_loss(judged_real, judged_fake)
    discriminator_optimiser.zero_grad()
    loss.backward()
    discriminator_optimiser.step()


def pyod_alad(split: data.Split, seed: int) -> Trained:
    """Train PyOD's ALAD on pixels in [-1, 1]; its 200 batches need less than the time allowed."""
    train = _flat(split.train)
    detector = ALAD(device=torch.device("cpu")).fit(train)
    return lambda: detector.decision_function(_flat(split.test)), {"images_used": len(train)}


def pyod_anogan(split: data.Split, seed: int) -> Trained:
    """Train PyOD's AnoGAN on pixels in [-1, 1]; time allows for at most 800 training images."""
    train = _flat(split.train)
    if len(train) > _ANOGAN_IMAGES:
        chosen = np.random.default_rng(seed).choice(len(train), _ANOGAN_IMAGES, replace=False)
        train = train[chosen]
    detector = AnoGAN(device=torch.device("cpu")).fit(train)
    return lambda: detector.decision_function(_flat(split.test)), {"images_used": len(train)}


def _flat(images: data.Pixels) -> np.ndarray:
    return as_float(images).reshape(len(images), -1)


PEERS: dict[str, tuple[str, Callable[[data.Split, int], Trained]]] = {
    "ganomaly": ("anomalib", ganomaly),
    "pyod-alad": ("pyod", pyod_alad),
    "pyod-anogan": ("pyod", pyod_anogan),
}


def compute(cell: Cell, command: str) -> dict[str, Any]:
    """Train a peer, score the whole test set with its last weights, and keep the result."""
    package, train = PEERS[cell.method]
    split = data.load(cell.data, cell.cls, seed=cell.seed)
    torch.set_num_threads(1)
    torch.manual_seed(cell.seed)
    np.random.seed(cell.seed)  # PyOD draws from the global generator
    start = time.process_time()
    score, details = train(split, cell.seed)
    trained = time.process_time()
    scores = score()
    found = {
        "auroc": float(roc_auc_score(split.anomalous, scores)),
        "cpu_seconds": trained - start,
        "cpu_seconds_scoring": time.process_time() - trained,
        "cpu_seconds_allowed": TRAINING_CPU_SECONDS,
        "peer": f"{package} {version(package)}",
        "torch": str(torch.__version__),
        **details,
    }
    return keep(cell, found | cells.sizes(split), command)


def main() -> None:
    """Compute missing cells, with a line each on stderr; print JSON of all cells."""
    parser = cells.parser(__doc__)
    parser.add_argument("--data", choices=list(data.SETS), required=True)
    parser.add_argument("--method", choices=list(PEERS), required=True)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    classes = options.classes or data.classes(options.data)
    wanted = [Cell(options.data, cls, options.seed, options.method) for cls in classes]
    cells.sweep(wanted, compute, options)


if __name__ == "__main__":
    main()
