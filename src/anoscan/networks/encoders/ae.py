"""Deterministic: one latent an image, as in f-AnoGAN (the default).

Schlegl et al. 2019 (doi 10.1016/j.media.2019.01.010): together with the frozen generator it is an
autoencoder. The paper bounds E(x) by a tanh; here it is unbounded, because
almost no sample of N(0, I) in many dimensions lies wholly within one standard deviation.

Not without any bound, though. The first steps can throw all latents far outside what the generator
ever saw, where its tanh is saturated and says nothing about the way back: every image is then
reconstructed as the same blank one, for good. So the mean square of a latent costs nothing up to
LIMIT (1 in the prior) and WEIGHT times the excess above, which always leads back.
"""

from __future__ import annotations

from torch import Tensor, nn

from anoscan.networks.encoders import Encoder

LIMIT = 4.0  # twice as long as a sample of the prior
WEIGHT = 0.1


def encode(network: nn.Module, x: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
    """E(x), and a penalty where it is much longer than samples of the prior are."""
    z: Tensor = network(x)
    return z, WEIGHT * (z.float().square().mean(1) - LIMIT).clamp_min(0).mean()


ENTRY = Encoder(outputs=1, wrap=lambda trunk: trunk, encode=encode, paper="Schlegl et al. 2019")
