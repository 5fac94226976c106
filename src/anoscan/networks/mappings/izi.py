"""Image to latent to image, compared in pixels alone.

Schlegl et al. 2019, f-AnoGAN (doi 10.1016/j.media.2019.01.010), call this loss izi:

    L(x) = 1/n |x - G(E(x))|^2
"""

from __future__ import annotations

from torch import Tensor
from torch.nn.functional import mse_loss

from anoscan.networks.architectures import Networks
from anoscan.networks.mappings import Mapping


def loss(networks: Networks, x: Tensor, z: Tensor, z_hat: Tensor) -> Tensor:
    """Mean squared residual, scalar."""
    return mse_loss(networks.generator(z_hat).float(), x)


ENTRY = Mapping(loss, paper="Schlegl et al. 2019")
