"""Image to latent to image, compared in pixels and in discriminator features (the default).

Schlegl et al. 2019, f-AnoGAN (doi 10.1016/j.media.2019.01.010), the loss they call izi_f:

    L(x) = 1/n |x - G(E(x))|^2 + kappa / n_d |f(x) - f(G(E(x)))|^2

with f the discriminator's last block. Here f are all blocks, each divided by its own mean square
on the batch, so that kappa = 1 means the same for every discriminator; the paper's raw last block
makes the second term anything from nothing to everything.
"""

from __future__ import annotations

from torch import Tensor
from torch.nn.functional import mse_loss

from anoscan.networks.architectures import Networks
from anoscan.networks.mappings import Mapping

KAPPA = 1.0


def loss(networks: Networks, x: Tensor, z: Tensor, z_hat: Tensor) -> Tensor:
    """Squared residual in pixels plus kappa times the relative one in features, scalar."""
    x_hat = networks.generator(z_hat)
    pixel = mse_loss(x_hat.float(), x)
    real = networks.discriminator.features(x)
    fake = networks.discriminator.features(x_hat)
    feature = sum(
        (
            mse_loss(b.float(), a.float()) / (a.float().square().mean().detach() + 1e-6)
            for a, b in zip(real, fake, strict=True)
        ),
        start=pixel.new_zeros(()),
    )
    return pixel + KAPPA * feature / len(real)


ENTRY = Mapping(loss, paper="Schlegl et al. 2019")
