"""Kinds of encoder: one file each, around the trunk that every architecture builds.

An encoder network E gives latents (n, d) of images (n, c, s, s); that is what scoring asks for.
While it learns, a kind may draw latents around E(x) and add a penalty of its own.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from torch import Tensor, nn

from anoscan.networks.architectures import Shape


@dataclass(frozen=True)
class Encoder:
    """How a trunk becomes an encoder, and how that encoder learns.

    Parameters
    ----------
    outputs : int
        Numbers that the trunk gives for each number of the latent.
    wrap : callable
        Trunk, from images to (n, outputs * d), -> network E, from images to latents (n, d).
    encode : callable
        (E, images (n, c, s, s), noise (n, d) from N(0, I)) -> latents (n, d) to learn with, and
        a penalty to minimise beside the mapping's loss, scalar, weight included.
    paper : str
        Where it comes from.
    """

    outputs: int
    wrap: Callable[[nn.Module], nn.Module]
    encode: Callable[[nn.Module, Tensor, Tensor], tuple[Tensor, Tensor]]
    paper: str

    def build(self, trunk: Callable[[Shape], nn.Module], shape: Shape) -> nn.Module:
        """Encoder network around an architecture's trunk, weights from torch's generator."""
        return self.wrap(trunk(replace(shape, latent_dim=self.outputs * shape.latent_dim)))
