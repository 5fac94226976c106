"""Ways to train the encoder that maps an image to the latent of its reconstruction."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from anoscan.networks.architectures import Networks


@dataclass(frozen=True)
class Mapping:
    """How an encoder learns.

    Parameters
    ----------
    loss : callable, optional
        (networks, images x (n, c, s, s), latents z (n, d), latents the encoder gave (n, d)) ->
        scalar. Without it the encoder learns beside the GAN (`joint.JointStage`) and has no stage
        of its own.
    paper : str
    given : {'images', 'samples'}
        What the encoder is given: the images x, corrupted on purpose while the loss compares with
        the clean ones, or the samples x = G(z), for which no image is read.
    """

    loss: Callable[[Networks, Tensor, Tensor, Tensor], Tensor] | None
    paper: str
    given: Literal["images", "samples"] = "images"
