"""Adds to a reconstruction what the decoder misses of normal images along few directions.

Aligned images differ in brightness, contrast and gradients, more finely than a decoder learns to
repeat. The largest principal components of its residuals on normal images hold most of that. A
query's residual along them is added to its reconstruction. A defect must not come back this way,
so every pixel of the residual is first limited to what is typical of normal images, as in Huber's
estimator (1964, doi 10.1214/aoms/1177703732).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import adaptive_avg_pool2d, interpolate

from anoscan.core.runtime import seeded

RANK = 32  # directions that are followed
SEEN = 128  # principal components that decide how far
LARGEST_GRID = 64  # pixels a side of the residual that directions are made of
FLOOR = 0.1  # share of the mean square over all pixels that is added to the square of each limit
RIDGE = 0.01  # share of the mean variance of a direction that is added to each variance


class LowRank(nn.Module):
    """Corrects reconstructions (n, c, s, s), given the images that they belong to.

    Parameters
    ----------
    channels, side : int
        Number of channels and side of the images. Larger residuals are averaged to a side of
        `LARGEST_GRID` pixels, so that a model file stays small.
    """

    limit: Tensor
    mean: Tensor
    down: Tensor
    up: Tensor

    def __init__(self, channels: int, side: int) -> None:
        super().__init__()
        self.grid = min(side, LARGEST_GRID)
        p = channels * self.grid**2
        self.register_buffer("limit", torch.zeros(p))
        self.register_buffer("mean", torch.zeros(p))
        self.register_buffer("down", torch.zeros(p, RANK))
        self.register_buffer("up", torch.zeros(RANK, p))

    def residuals(self, x: Tensor, x_hat: Tensor) -> Tensor:
        """Return the residuals x - x_hat on the grid, as vectors (n, p)."""
        missed = x - x_hat
        if missed.shape[-1] > self.grid:
            missed = adaptive_avg_pool2d(missed, self.grid)
        return missed.flatten(1)

    def limited(self, residuals: Tensor) -> Tensor:
        """Return residuals (n, p), each limited to what is typical of normal images."""
        return torch.minimum(torch.maximum(residuals, -self.limit), self.limit) - self.mean

    def forward(self, x: Tensor, x_hat: Tensor) -> Tensor:
        """Return the corrected reconstructions (n, c, s, s)."""
        found = self.limited(self.residuals(x, x_hat)) @ self.down @ self.up + self.mean
        added = found.view(x.shape[0], x.shape[1], self.grid, self.grid)
        if self.grid < x.shape[-1]:
            added = interpolate(added, x.shape[-2:], mode="bilinear", align_corners=False)
        return x_hat + added

    @torch.no_grad()
    def fit(self, clean: Tensor, given: Tensor, seed: int) -> LowRank:
        """Learn the directions, and how far to follow them, and return self.

        Parameters
        ----------
        clean, given : Tensor of shape (n, p)
            The `residuals` of normal images, and those of the same images with defects. Both are
            relative to the reconstructions of the images with defects.
        seed : int
            Seed of the search for directions.
        """
        squares = clean.square().mean(0)
        self.limit = (squares + FLOOR * squares.mean()).sqrt()
        self.mean = clean.mean(0)
        wanted = clean - self.mean
        with seeded(seed, "low-rank"):
            seen = torch.svd_lowrank(wanted, min(SEEN, *wanted.shape), niter=4)[2]
        given, wanted = self.limited(given) @ seen, wanted @ seen
        # Ridge regression: a direction that defects resemble is followed less far.
        products = given.T @ given
        products.diagonal().add_(RIDGE * products.diagonal().mean().clamp_min(1e-9))
        weights = torch.linalg.solve(products, given.T @ wanted)
        predicted = given @ weights
        followed = torch.linalg.eigh(predicted.T @ predicted)[1].flip(1)[:, :RANK]
        rank = followed.shape[1]
        self.down, self.up = torch.zeros_like(self.down), torch.zeros_like(self.up)
        self.down[:, :rank] = seen @ weights @ followed
        self.up[:rank] = (seen @ followed).T
        return self
