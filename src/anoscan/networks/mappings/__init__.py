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
    loss : callable or None
        (networks, images x (n, c, s, s), latents z (n, d), latents from the encoder (n, d)) ->
        scalar. With None the encoder learns beside the GAN (`joint_stage.JointStage`) and has no
        stage of its own.
    given : {'images', 'samples'}
        With 'images' the encoder is given images x with pasted rectangles, while the loss compares
        with the clean ones. With 'samples' it is given x = G(z), and no image is read.
    """

    loss: Callable[[Networks, Tensor, Tensor, Tensor], Tensor] | None
    paper: str
    given: Literal["images", "samples"] = "images"
