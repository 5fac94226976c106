"""Find the normal training images that are nearest to a query, by their latents E(x).

They may be private, so a model keeps them only on request (``train --keep-thumbnails``).
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from anoscan.core.arrays import Floats
from anoscan.core.results import Neighbour
from anoscan.core.runtime import exact_float32
from anoscan.core.tensors import Like
from anoscan.networks.architectures import Networks
from anoscan.scoring.measure import chunks

MOST = 4096  # training images that a model keeps, at most
SIDE = 32  # pixels along the side of a thumbnail, at most


@dataclass(frozen=True)
class Neighbours:
    """Training images: their latents E(x), thumbnails and paths.

    Parameters
    ----------
    latents : ndarray of shape (n, d), float32
    thumbnails : ndarray of shape (n, c, t, t), uint8
        The images, reduced to at most `SIDE` pixels a side.
    paths : tuple of n str
        The paths of the files, as they were given to the training.
    """

    latents: np.ndarray
    thumbnails: np.ndarray
    paths: tuple[str, ...]

    @classmethod
    def of(
        cls, networks: Networks, pixels: np.ndarray, rows: np.ndarray, paths: list[str]
    ) -> Neighbours:
        """Encode training images, evenly spread over the given ones, `MOST` at most.

        Parameters
        ----------
        networks : Networks
        pixels : ndarray of shape (n, c, s, s), float32 in [-1, 1]
        rows : ndarray of shape (m,)
            The rows of `pixels` that hold training images.
        paths : list of n str
            The path of each image of `pixels`.
        """
        rows = rows[:: max(1, -(-len(rows) // MOST))]
        device = next(networks.encoder.parameters()).device
        latents, thumbnails = [], []
        with exact_float32():
            for x in chunks(rows, pixels.__getitem__, device):
                latents.append(networks.encoder(x).float().cpu().numpy())
                thumbnails.append(_small(x).cpu().numpy())
        return cls(
            np.concatenate(latents), np.concatenate(thumbnails), tuple(paths[row] for row in rows)
        )

    def nearest(self, latent: np.ndarray, k: int) -> tuple[Neighbour, ...]:
        """Return the k training images with the latents nearest to `latent` (d,), nearest first."""
        distances = np.linalg.norm(
            self.latents.astype(np.float64) - latent.astype(np.float64), axis=1
        )
        rows = np.argsort(distances, kind="stable")[:k]
        return tuple(
            Neighbour(path=self.paths[row], distance=float(distances[row])) for row in rows
        )

    def thumbnails_of(self, named: Sequence[Neighbour]) -> np.ndarray:
        """Return the thumbnails (k, c, t, t), uint8, of training images that `nearest` returned."""
        return self.thumbnails[[self.paths.index(neighbour.path) for neighbour in named]]

    def tensors(self) -> dict[str, Tensor]:
        """Return the tensors that a model file stores; `of_tensors` reads them back."""
        names = json.dumps(self.paths, ensure_ascii=True).encode("ascii")
        return {
            "neighbours/latents": torch.from_numpy(self.latents),
            "neighbours/thumbnails": torch.from_numpy(self.thumbnails),
            "neighbours/paths": torch.from_numpy(np.frombuffer(names, np.uint8).copy()),
        }

    @staticmethod
    def forms(channels: int, size: int, latent_dim: int) -> dict[str, Like]:
        """Return what the result of `tensors` is like, for images of a model."""
        side = min(size, SIDE)
        return {
            "neighbours/latents": Like(("neighbours", latent_dim)),
            "neighbours/thumbnails": Like(("neighbours", channels, side, side), torch.uint8),
            "neighbours/paths": Like(("bytes of paths",), torch.uint8),
        }

    @classmethod
    def of_tensors(cls, tensors: dict[str, Tensor]) -> Neighbours:
        """Read the training images from tensors, whose `forms` were checked.

        Raises
        ------
        ValueError
            When the paths are not as `tensors` writes them.
        """
        latents = tensors["neighbours/latents"].numpy()
        try:
            paths = json.loads(tensors["neighbours/paths"].numpy().tobytes())
        except (ValueError, RecursionError):  # ValueError covers bad UTF-8 and bad JSON
            paths = None
        listed = isinstance(paths, list) and all(isinstance(path, str) for path in paths)
        if not listed or len(paths) != len(latents):
            raise ValueError("the paths of training images do not fit their latents")
        return cls(latents, tensors["neighbours/thumbnails"].numpy(), tuple(paths))


def latent(networks: Networks, pixels: Floats) -> np.ndarray:
    """Return the latent E(x) (d,), float32, of one image (c, s, s) in [-1, 1], encoded alone."""
    device = next(networks.encoder.parameters()).device
    with exact_float32():
        found: np.ndarray = networks.encoder(torch.from_numpy(pixels[None]).to(device))[0].cpu()
        return np.asarray(found, np.float32)


def _small(x: Tensor) -> Tensor:
    """Reduce images (n, c, s, s) in [-1, 1] to thumbnails (n, c, t, t), uint8."""
    side = min(x.shape[-1], SIDE)
    if side < x.shape[-1]:
        x = functional.interpolate(x, (side, side), mode="bilinear", antialias=True)
    return ((x.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
