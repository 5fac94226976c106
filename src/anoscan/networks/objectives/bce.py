"""Cross-entropy with the -log D trick and without a penalty, as in the original GAN.

Eq. 1 of Goodfellow et al. 2014, "Generative Adversarial Nets" (arXiv 1406.2661), is the loss of the
discriminator. The generator maximises log D(G(z)) instead of minimising log(1 - D(G(z)))
(section 3). The losses are those of ``nonsaturating``, and nothing keeps the discriminator from
becoming too strong. So the generator also matches the variety of real features (`spread_gap`).
Otherwise short trainings end in one image.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

from anoscan.networks.objectives import Objective


def discriminator_loss(real: Tensor, fake: Tensor) -> Tensor:
    """-log sigmoid(D(x)) - log(1 - sigmoid(D(G(z)))), means over the batch (eq. 1)."""
    return binary_cross_entropy_with_logits(
        real, torch.ones_like(real)
    ) + binary_cross_entropy_with_logits(fake, torch.zeros_like(fake))


def generator_loss(fake: Tensor) -> Tensor:
    """-log sigmoid(D(G(z))), mean over the batch."""
    return binary_cross_entropy_with_logits(fake, torch.ones_like(fake))


ENTRY = Objective(
    discriminator_loss,
    generator_loss,
    variety=2.0,
    discriminator_steps=1,
    learning_rate=2e-4,
    betas=(0.5, 0.99),
    paper="Goodfellow et al. 2014",
)
