"""Batch normalisation over the whole batch, where several processes share it.

`torch.nn.SyncBatchNorm` does the same on CUDA devices only. With one process, and in evaluation,
these layers are those of torch.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from anoscan.core import shares
from anoscan.core.shares import Share


class BatchNorm1d(nn.BatchNorm1d):
    """Normalises vectors (n, c) or (n, c, length)."""

    def forward(self, x: Tensor) -> Tensor:
        """Map a tensor to the same shape."""
        share = shares.current()
        if share.size == 1 or not self.training:
            return super().forward(x)
        return _normalised(self, x, share)


class BatchNorm2d(nn.BatchNorm2d):
    """Normalises maps (n, c, h, w)."""

    def forward(self, x: Tensor) -> Tensor:
        """Map a tensor to the same shape."""
        share = shares.current()
        if share.size == 1 or not self.training:
            return super().forward(x)
        return _normalised(self, x, share)


def _normalised(layer: nn.BatchNorm1d | nn.BatchNorm2d, x: Tensor, share: Share) -> Tensor:
    shape = (1, -1, *(1,) * (x.dim() - 2))
    mean, variance = share.moments(x.float(), (0, *range(2, x.dim())))
    if layer.running_mean is not None and layer.running_var is not None:
        count = x.numel() / x.shape[1] / share.weight
        with torch.no_grad():
            layer.running_mean.lerp_(mean.detach(), layer.momentum or 0.0)
            unbiased = variance.detach() * (count / (count - 1))
            layer.running_var.lerp_(unbiased, layer.momentum or 0.0)
            if layer.num_batches_tracked is not None:
                layer.num_batches_tracked.add_(1)
    scale = (variance + layer.eps).rsqrt() * layer.weight
    centred = x.float() - mean.view(shape)
    return (centred * scale.view(shape) + layer.bias.view(shape)).to(x.dtype)
