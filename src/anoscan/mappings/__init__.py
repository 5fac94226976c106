"""Ways to train the encoder that maps an image to the latent of its reconstruction."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from anoscan.architectures import Networks


@dataclass(frozen=True)
class Mapping:
    """How an encoder learns.

    Parameters
    ----------
    loss : callable
        (networks, target images x (n, c, s, s), images the encoder is given, latents z (n, d))
        -> scalar. The two sets of images differ when the input is corrupted on purpose.
    paper : str
    """

    loss: Callable[[Networks, Tensor, Tensor, Tensor], Tensor]
    paper: str
