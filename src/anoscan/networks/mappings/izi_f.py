"""Image to latent to image, compared in pixels and in discriminator features (the default).

Schlegl et al. 2019, f-AnoGAN (doi 10.1016/j.media.2019.01.010), call this loss izi_f:

    L(x) = 1/n |x - G(E(x))|^2 + kappa / n_d |f(x) - f(G(E(x)))|^2

There f is the discriminator's last block, unscaled, and the size of the second term depends on the
discriminator. Here f is all blocks, and the residual of each is divided by the block's mean square
on the batch. So kappa = 1 means the same for every discriminator.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import mse_loss

from anoscan.core import shares
from anoscan.networks.architectures import Networks
from anoscan.networks.mappings import Mapping

KAPPA = 1.0


def loss(networks: Networks, x: Tensor, z: Tensor, z_hat: Tensor) -> Tensor:
    """Mean squared residual of pixels plus kappa times the relative one of features, scalar."""
    x_hat = networks.generator(z_hat)
    pixel = mse_loss(x_hat.float(), x)
    real = networks.discriminator.features(x)
    fake = networks.discriminator.features(x_hat)
    sizes = torch.stack([a.float().square().mean().detach() for a in real])
    feature = sum(
        (
            mse_loss(b.float(), a.float()) / (size + 1e-6)
            for a, b, size in zip(real, fake, shares.current().mean(sizes), strict=True)
        ),
        start=pixel.new_zeros(()),
    )
    return pixel + KAPPA * feature / len(real)


ENTRY = Mapping(loss, paper="Schlegl et al. 2019")
