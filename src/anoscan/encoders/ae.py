"""Deterministic: one latent an image, as in f-AnoGAN (the default).

Schlegl et al. 2019 (doi 10.1016/j.media.2019.01.010): together with the frozen generator it is an
autoencoder. The paper bounds E(x) by a tanh; here it is unbounded, because
almost no sample of N(0, I) in many dimensions lies wholly within one standard deviation.
"""

from __future__ import annotations

from torch import Tensor, nn

from anoscan.encoders import Encoder


def encode(network: nn.Module, x: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
    """E(x), and no penalty."""
    z: Tensor = network(x)
    return z, noise.new_zeros(())


ENTRY = Encoder(outputs=1, wrap=lambda trunk: trunk, encode=encode, paper="Schlegl et al. 2019")
