"""Tensors of a file that nobody vouches for: names, shapes, types and values are checked."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Like:
    """The shape, type and range that a tensor must have; floating-point values must be finite.

    Parameters
    ----------
    shape : tuple of int or str
        A name stands for any length from 1 on, equal wherever the name occurs. One that ends with
        a question mark may also be 0.
    dtype : torch.dtype
    low, high : float
        The least and the largest value that is allowed.
    """

    shape: tuple[int | str, ...]
    dtype: torch.dtype = torch.float32
    low: float = -math.inf
    high: float = math.inf


def like(tensors: Mapping[str, Tensor]) -> dict[str, Like]:
    """Return what tensors of the state of a network are like; variances are not negative.

    The tensors may be on the meta device.
    """
    return {
        name: Like(
            tuple(value.shape), value.dtype, low=0 if name.endswith("running_var") else -math.inf
        )
        for name, value in tensors.items()
    }


def check(tensors: Mapping[str, Tensor], expected: Mapping[str, Like]) -> None:
    """Check that tensors are exactly those that are expected.

    Raises
    ------
    ValueError
        For the first tensor that is missing, unknown, of another shape or type, or out of range.
    """
    for name in sorted(expected.keys() | tensors.keys()):
        if name not in tensors:
            raise ValueError(f"the tensor {name} is missing")
        if name not in expected:
            raise ValueError(f"the tensor {name[:80]!r} is unknown")
    lengths: dict[str, int] = {}
    for name, wanted in expected.items():
        _check_form(name, tensors[name], wanted, lengths)
        _check_values(name, tensors[name], wanted)


def _check_form(name: str, tensor: Tensor, wanted: Like, lengths: dict[str, int]) -> None:
    if tensor.dtype != wanted.dtype:
        raise ValueError(f"the tensor {name} is {_of(tensor.dtype)}, not {_of(wanted.dtype)}")
    fits = tensor.ndim == len(wanted.shape)
    for length, side in zip(tensor.shape, wanted.shape, strict=False):
        if isinstance(side, str):
            least = 0 if side.endswith("?") else 1
            fits = fits and length == lengths.setdefault(side, max(length, least))
        else:
            fits = fits and length == side
    if not fits:
        needed = tuple(lengths.get(side, side) for side in wanted.shape)  # type: ignore[arg-type]
        raise ValueError(f"the tensor {name} is {_by(tensor.shape)}, not {_by(needed)}")


def _check_values(name: str, tensor: Tensor, wanted: Like) -> None:
    if not tensor.numel() or not (tensor.is_floating_point() or math.isfinite(wanted.low)):
        return
    least, most = (float(end) for end in torch.aminmax(tensor))  # each is NaN if any value is
    if not (math.isfinite(least) and math.isfinite(most)):
        raise ValueError(f"the tensor {name} holds NaN or infinity")
    if least < wanted.low or most > wanted.high:
        raise ValueError(f"the tensor {name} has values out of range")


def _of(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _by(shape: tuple[int | str, ...]) -> str:
    return "x".join(map(str, shape)) or "one number"
