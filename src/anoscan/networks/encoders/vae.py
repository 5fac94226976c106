"""Variational: each image gets a Gaussian; E learns from its samples and scores by its mean.

The encoder gives a mean m and a log-variance log v, as in Kingma and Welling 2013, "Auto-Encoding
Variational Bayes" (arXiv 1312.6114). It learns from z = mean + deviation * noise (section 2.4). The
penalty is the divergence from the prior (appendix B):

    KL(N(m, v) || N(0, I)) = 1/2 sum_j (m_j^2 + v_j - log v_j - 1)

The mapping's loss is a mean over pixels, so the divergence is a mean over the latent's d numbers.
For n pixels of noise variance s^2 that makes WEIGHT = 2 s^2 d / n. With 64 numbers and 32x32 grey
pixels s is 0.28 on the scale from -1 to 1. Under ``--mapping bigan`` the adversarial training
itself keeps latents near the prior, and there is no penalty. That is the encoder of Dumoulin et al.
2016 (arXiv 1606.00704).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from anoscan.networks.encoders import Encoder

WEIGHT = 0.01
LIMIT = 10.0  # bound of the log-variance, whose exponential must stay finite


class Gaussian(nn.Module):
    """Gives the mean and the log-variance of a Gaussian; when called, the mean only.

    The trunk maps images (n, c, s, s) to (n, 2 d): means first, then log-variances.
    """

    def __init__(self, trunk: nn.Module) -> None:
        super().__init__()
        self.trunk = trunk

    def moments(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log-variance for images (n, c, s, s), both (n, d) float32."""
        mean, log_variance = self.trunk(x).float().chunk(2, 1)
        return mean, log_variance.clamp(-LIMIT, LIMIT)

    def forward(self, x: Tensor) -> Tensor:
        """Means (n, d) of images (n, c, s, s)."""
        return self.moments(x)[0]


def divergence(mean: Tensor, log_variance: Tensor) -> Tensor:
    """KL(N(m, v) || N(0, I)) per number of the latent: the mean over (n, d), a scalar."""
    return 0.5 * (mean.square() + log_variance.exp() - log_variance - 1).mean()


def encode(network: nn.Module, x: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
    """Return samples (n, d) of the Gaussians, and their weighted divergence from the prior.

    Raises
    ------
    TypeError
        When `network` is no `Gaussian`.
    """
    if not isinstance(network, Gaussian):
        raise TypeError("this kind of encoder is a Gaussian around a trunk")
    mean, log_variance = network.moments(x)
    z = mean + torch.exp(0.5 * log_variance) * noise
    return z, WEIGHT * divergence(mean, log_variance)


ENTRY = Encoder(outputs=2, wrap=Gaussian, encode=encode, paper="Kingma and Welling 2013")
