"""Hinge loss with a spectrally normalised discriminator: no penalty to compute.

Miyato et al. 2018, "Spectral Normalization for Generative Adversarial Networks" (arXiv
1802.05957): eq. 8, each weight divided by its largest singular value, found by one step of power
iteration a pass; eqs. 16 and 17, the hinge losses. The weights that are kept are those divided
ones, so that nothing after the game knows of it. Besides, the generator matches the variety of
real features (`spread_gap`): without that, short games end in one image.
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
    """Divide every weight of the game by its spectral norm (eq. 8)."""
    # The head for quarter turns is not in the game.
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
