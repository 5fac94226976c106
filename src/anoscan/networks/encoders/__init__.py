"""Kinds of encoder: each file holds one, built around the trunk of the architecture.

An encoder network E maps images (n, c, s, s) to latents (n, d), which is all that scoring needs.
While E learns, a kind may draw latents around E(x) and add a penalty of its own.
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
        Number of outputs of the trunk for each number of the latent.
    wrap : callable
        (trunk) -> network E. The trunk maps images to (n, outputs * d), E to latents (n, d).
    encode : callable
        (E, images (n, c, s, s), noise (n, d) from N(0, I)) -> (latents (n, d) to learn with,
        penalty). The penalty is a weighted scalar that is added to the mapping's loss.
    """

    outputs: int
    wrap: Callable[[nn.Module], nn.Module]
    encode: Callable[[nn.Module, Tensor, Tensor], tuple[Tensor, Tensor]]
    paper: str

    def build(self, trunk: Callable[[Shape], nn.Module], shape: Shape) -> nn.Module:
        """Build the network around an architecture's trunk; torch's generator draws weights."""
        return self.wrap(trunk(replace(shape, latent_dim=self.outputs * shape.latent_dim)))
