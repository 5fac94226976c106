"""Deterministic: each image has one latent, as in f-AnoGAN (the default).

Together with the frozen generator it is an autoencoder (Schlegl et al. 2019, doi
10.1016/j.media.2019.01.010). The paper bounds E(x) by a tanh. Here it is unbounded, because almost
no sample of N(0, I) in many dimensions lies wholly within one standard deviation.

Long latents cost something, though. The first steps can throw all latents far outside what the
generator was trained on. There its tanh is saturated and has no gradient that leads back. Every
image is then reconstructed as the same blank one, for good. So a mean square of a latent above
LIMIT (it is 1 in the prior) costs WEIGHT times the excess, which always leads back.
"""

from __future__ import annotations

from torch import Tensor, nn

from anoscan.networks.encoders import Encoder

LIMIT = 4.0  # mean square of a latent twice as long as a sample of the prior
WEIGHT = 0.1


def encode(network: nn.Module, x: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
    """Return E(x), (n, d), and a penalty where it is much longer than samples of the prior."""
    z: Tensor = network(x)
    return z, WEIGHT * (z.float().square().mean(1) - LIMIT).clamp_min(0).mean()


ENTRY = Encoder(outputs=1, wrap=lambda trunk: trunk, encode=encode, paper="Schlegl et al. 2019")
