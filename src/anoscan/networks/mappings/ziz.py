"""Latent to image to latent: the encoder undoes the generator and sees no real image.

Schlegl et al. 2019, f-AnoGAN (doi 10.1016/j.media.2019.01.010), call this loss ziz:

    L(z) = 1/d |z - E(G(z))|^2,  z ~ N(0, I)
"""

from __future__ import annotations

from torch import Tensor
from torch.nn.functional import mse_loss

from anoscan.networks.architectures import Networks
from anoscan.networks.mappings import Mapping


def loss(networks: Networks, x: Tensor, z: Tensor, z_hat: Tensor) -> Tensor:
    """Mean squared difference of the latents, scalar."""
    return mse_loss(z_hat.float(), z)


ENTRY = Mapping(loss, paper="Schlegl et al. 2019", given="samples")
