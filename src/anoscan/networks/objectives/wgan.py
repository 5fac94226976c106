"""Wasserstein distance with clipped weights: the first WGAN, for the record.

Arjovsky et al. 2017, "Wasserstein GAN" (arXiv 1701.07875), algorithm 1: after each critic step
all weights are clipped to [-0.01, 0.01]. Theirs are five for each step of the generator, here it is
one: in games of tens of thousands of images, thousands of times shorter than theirs, the
generator's steps are what is scarce. The paper takes RMSProp because momentum made training
unstable; Adam without momentum (beta1 = 0) is RMSProp with a corrected start. A critic of such
small weights is nearly linear and lets the generator stay with one image, so that the generator
also matches the variety of real features (`spread_gap`). Behind the many layers of a residual or a
growing critic nothing would be left of an image at 0.01: there each layer has a bound of its own.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import is_parametrized

from anoscan.networks.objectives import NEGATIVE_LOSSES, Objective

CLIP = 0.01
INPUTS = 10_000  # of a layer of the paper's critic (a DCGAN's, up to 512 channels of 5x5)
FEW_LAYERS = 8  # a DCGAN's at 256 pixels


def discriminator_loss(real: Tensor, fake: Tensor) -> Tensor:
    """E[D(G(z))] - E[D(x)] (eq. 2, turned into a loss)."""
    return fake.mean() - real.mean()


def generator_loss(fake: Tensor) -> Tensor:
    """-E[D(G(z))]."""
    return -fake.mean()


@torch.no_grad()
def constrain(discriminator: nn.Module) -> None:
    """Clip the parameters of all linear and convolutional layers of the game.

    Not those of normalisation layers, whose scale is 1 by nature. Where there are more than
    `FEW_LAYERS`, and where their speed is equalised, layers are bounded as if they had `INPUTS`
    inputs: then an image is as large behind a narrow layer as behind a wide one. Of equalised
    layers by what acts and not by what Adam moves.
    """
    apart = getattr(discriminator, "turn_head", None)
    layers = [
        module
        for module in discriminator.modules()
        if isinstance(module, nn.Conv2d | nn.Linear) and module is not apart
    ]
    many = len(layers) > FEW_LAYERS
    for layer in layers:
        most = CLIP
        if many or is_parametrized(layer):
            most *= (INPUTS / layer.weight[0].numel()) ** 0.5
        if is_parametrized(layer):
            layer.weight = layer.weight.clamp(-most, most)
        for name in [name for name, _ in layer.named_parameters(recurse=False)]:
            getattr(layer, name).clamp_(-most, most)


ENTRY = Objective(
    discriminator_loss,
    generator_loss,
    constrain=constrain,
    variety=2.0,
    discriminator_steps=1,
    learning_rate=5e-4,
    betas=(0.0, 0.99),
    paper="Arjovsky et al. 2017",
    note=NEGATIVE_LOSSES,
)
