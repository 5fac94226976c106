"""Measure how well small defects can be detected at all: ``python -m benchmarks.ceiling``.

A classifier is trained with labels on thousands of defects of the tested kinds. They are planted in
the crops that the detectors learn from. Its AUROC is an estimate of how well any method can detect
the defects of a set. It is no detector to compare, because no detector here may use defects in
training.
"""

from __future__ import annotations

import argparse
import time

import numpy as np
import torch
from sklearn.metrics import roc_auc_score
from torch import Tensor, nn

from benchmarks import cells, data, defects, markdown
from benchmarks.cells import Cell

ROUNDS = 30  # how often each training crop is shown without and with a new defect, on average
BATCH = 64


def network() -> nn.Sequential:
    """Build a classifier that sees places but no whole: strided blocks, then maxima over places."""
    layers: list[nn.Module] = []
    channels = 1
    for wide in (16, 48, 96):
        for stride in (1, 2):
            layers += [nn.Conv2d(channels, wide, 3, stride, 1), nn.BatchNorm2d(wide), nn.ReLU()]
            channels = wide
    return nn.Sequential(*layers, nn.AdaptiveMaxPool2d(1), nn.Flatten(), nn.Linear(channels, 1))


def _floats(images: np.ndarray) -> Tensor:
    return torch.from_numpy(images.astype(np.float32) / 127.5 - 1)[:, None]


def train(crops: np.ndarray, seed: int) -> nn.Sequential:
    """Train the classifier to distinguish crops (n, 64, 64) from the same with a defect."""
    rng = np.random.default_rng(seed)
    torch.manual_seed(seed)
    model = network().to(memory_format=torch.channels_last)
    steps = ROUNDS * (len(crops) * 2 // BATCH)
    optimizer = torch.optim.AdamW(model.parameters(), 2e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 4e-3, steps)
    for _ in range(steps):
        clean = crops[rng.choice(len(crops), BATCH // 2, replace=False)]
        donors = crops[rng.choice(len(crops), BATCH // 2)]
        odd = np.stack(
            [defects.defective(a, rng, b).image for a, b in zip(clean, donors, strict=True)]
        )
        x = _floats(np.concatenate([clean, odd]))
        if rng.random() < 0.5:
            x = x.flip(3)
        label = torch.cat([torch.zeros(len(clean)), torch.ones(len(odd))])
        optimizer.zero_grad()
        logits = model(x)[:, 0]
        nn.functional.binary_cross_entropy_with_logits(logits, label).backward()
        optimizer.step()
        schedule.step()
    return model.eval()


def table() -> str:
    """Lay out the kept results."""
    rows = [[r["cls"], f"{r['auroc']:.3f}", str(r["seed"])] for r in cells.load("ceiling/*")]
    return markdown.table(["defects", "AUROC", "seed"], rows)


def main() -> None:
    """Measure every class of the small defects that has no result yet."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--classes", default=",".join(data.classes("defects")))
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    torch.set_num_threads(1)
    for cls in options.classes.split(","):
        cell = Cell("ceiling", cls, options.seed, "supervised")
        if cells.find(cell):
            continue
        split = data.load("defects", cls, seed=options.seed)
        start = time.process_time()
        model = train(split.train, options.seed)
        with torch.no_grad():
            scores = torch.cat(
                [model(_floats(part))[:, 0] for part in np.array_split(split.test, 8)]
            )
        found = {
            "auroc": float(roc_auc_score(split.anomalous, scores.numpy())),
            "cpu_seconds": time.process_time() - start,
        }
        cells.keep(cell, found | cells.sizes(split), cells.command())
        print(cls, found["auroc"], flush=True)


if __name__ == "__main__":
    main()
