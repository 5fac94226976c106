"""The share of a batch that one process takes in a training step, and sums over all processes.

Every process takes an equal part of the same batch, or one image more or less. Means over images
are weighted by the size of the part, so their sum is the mean over the whole batch. Gradients are
summed here, and `DistributedDataParallel` is not used, for three reasons:

- R1 and the gradient penalty differentiate the discriminator twice, which its hooks do not support.
- It averages over processes. That is wrong where parts differ in size.
- A step passes a network several times, partly without gradients, and freezes it in between.

Networks are small enough to be summed at once after each backward pass.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from anoscan.core.errors import ProcessLost


class Share:
    """The part of a batch of `images` that process number `rank` of `size` takes.

    Attributes
    ----------
    rows : slice
        Rows of the batch that belong to this process.
    weight : float
        Share of the batch that belongs to this process.
    """

    def __init__(self, rank: int, size: int, images: int) -> None:
        self.size, self.images = size, images
        start, stop = rank * images // size, (rank + 1) * images // size
        self.rows = slice(start, stop) if size > 1 else slice(None)
        self.weight = (stop - start) / images if size > 1 else 1.0

    def drawn(self, draw: Callable[[int], Tensor], n: int) -> Tensor:
        """Draw random numbers for each image of the whole batch, and return those of this part.

        `draw` takes a number of images and returns a tensor with one row for each. `n` is the
        number of images of this part.
        """
        return draw(self.images if self.size > 1 else n)[self.rows]

    def total(self, x: Tensor) -> Tensor:
        """Return the sum of a tensor over all processes; gradients of any order pass through it."""
        if self.size == 1:
            return x
        summed: Tensor = _Sum.apply(x)
        return summed

    def mean(self, x: Tensor) -> Tensor:
        """Return the mean over the batch, where `x` is the mean over this part."""
        return x if self.size == 1 else self.total(x * self.weight)

    def moments(self, x: Tensor, axes: tuple[int, ...]) -> tuple[Tensor, Tensor]:
        """Return mean and biased variance over the batch, along `axes` of a float32 tensor."""
        mean, variance = x.mean(axes).double(), x.var(axes, correction=0).double()
        mean, square = self.mean(torch.stack([mean, variance + mean.square()])).unbind()
        return mean.float(), (square - mean.square()).clamp_min(0).float()

    def backward(self, loss: Tensor, optimizers: Iterable[torch.optim.Optimizer]) -> None:
        """Compute the gradients of the mean loss over the batch; `loss` is that of this part."""
        if self.size == 1:
            loss.backward()  # type: ignore[no-untyped-call]
            return
        (loss * self.weight).backward()  # type: ignore[no-untyped-call]
        gradients = [
            weight.grad
            for optimizer in optimizers
            for group in optimizer.param_groups
            for weight in group["params"]
            if weight.grad is not None
        ]
        summed = sum_up(torch.cat([gradient.flatten() for gradient in gradients]))
        parts = torch.split(summed, [gradient.numel() for gradient in gradients])
        for gradient, part in zip(gradients, parts, strict=True):
            gradient.copy_(part.view(gradient.shape))


WHOLE = Share(0, 1, 0)
_share = WHOLE


def current() -> Share:
    """Return the share of this process in the step that is under way; outside steps, all."""
    return _share


@contextmanager
def taking(share: Share) -> Iterator[None]:
    """Make a share the current one in this context."""
    global _share
    before, _share = _share, share
    try:
        yield
    finally:
        _share = before


def sum_up(x: Tensor) -> Tensor:
    """Replace a contiguous tensor by its sum over all processes, and return it.

    Raises
    ------
    ProcessLost
        When another process has ended, or does not answer.
    """
    with answering():
        dist.all_reduce(x)
    return x


@contextmanager
def answering() -> Iterator[None]:
    """Raise `ProcessLost` where processes cannot reach each other in this context."""
    try:
        yield
    except RuntimeError as error:  # the base class of all errors of torch.distributed
        # A place in the source comes first, in brackets, and advice after the first sentence.
        reason = re.sub(r"^\[[^]]*]\s*", "", str(error).strip()).partition("\n")[0]
        raise ProcessLost(reason.partition(". ")[0]) from error


class _Sum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return sum_up(x.detach().clone(memory_format=torch.contiguous_format))

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        return _Sum.apply(gradients[0])
