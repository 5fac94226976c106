"""Hinge loss with a spectrally normalised discriminator, which needs no penalty.

The equations are those of Miyato et al. 2018, "Spectral Normalization for Generative Adversarial
Networks" (arXiv 1802.05957). Each weight is divided by its largest singular value (eq. 8), which
one step of power iteration in each pass estimates. Eqs. 16 and 17 are the hinge losses. The divided
weights are kept, so later stages see ordinary weights. The generator also matches the variety of
real features (`spread_gap`). Otherwise short trainings end in one image.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn.functional import relu
from torch.nn.utils.parametrizations import spectral_norm

from anoscan.networks.objectives import Objective


def discriminator_loss(real: Tensor, fake: Tensor) -> Tensor:
    """E[max(0, 1 - D(x))] + E[max(0, 1 + D(G(z)))] (eq. 16)."""
    return relu(1 - real).mean() + relu(1 + fake).mean()


def generator_loss(fake: Tensor) -> Tensor:
    """-E[D(G(z))] (eq. 17)."""
    return -fake.mean()


def prepare(discriminator: nn.Module) -> None:
    """Divide every weight that the GAN stage trains by its spectral norm (eq. 8)."""
    # The rotation head is not trained in the GAN stage.
    apart = getattr(discriminator, "turn_head", None)
    for module in discriminator.modules():
        if isinstance(module, nn.Conv2d | nn.Linear) and module is not apart:
            spectral_norm(module)


ENTRY = Objective(
    discriminator_loss,
    generator_loss,
    prepare=prepare,
    variety=2.0,
    discriminator_steps=1,
    learning_rate=4e-4,
    betas=(0.5, 0.99),
    paper="Miyato et al. 2018",
)
