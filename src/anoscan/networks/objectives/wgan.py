"""Wasserstein distance with clipped critic weights, as in the first WGAN.

In algorithm 1 of Arjovsky et al. 2017, "Wasserstein GAN" (arXiv 1701.07875), all weights are
clipped to [-0.01, 0.01] after each critic step. There are four departures:

- There is one critic step for each step of the generator, not five. Trainings of tens of thousands
  of images are thousands of times shorter than theirs, so steps of the generator are scarce.
- The paper takes RMSProp, because momentum made training unstable. Adam without momentum
  (beta1 = 0) is RMSProp with a corrected start.
- A critic of such small weights is nearly linear, and lets the generator make only one image. So
  the generator also matches the variety of real features (`spread_gap`).
- Residual and growing critics have many layers. At 0.01 nothing of an image would be left behind
  them. So each of their layers has a bound of its own.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import is_parametrized

from anoscan.networks.objectives import NEGATIVE_LOSSES, Objective

CLIP = 0.01
INPUTS = 10_000  # of a layer of the paper's critic, a DCGAN (up to 512 channels of 5x5)
FEW_LAYERS = 8  # layers of a DCGAN at 256 pixels


def discriminator_loss(real: Tensor, fake: Tensor) -> Tensor:
    """E[D(G(z))] - E[D(x)] (eq. 2, with its sign flipped to be minimised)."""
    return fake.mean() - real.mean()


def generator_loss(fake: Tensor) -> Tensor:
    """-E[D(G(z))]."""
    return -fake.mean()


@torch.no_grad()
def constrain(discriminator: nn.Module) -> None:
    """Clip the parameters of all linear and convolutional layers that the GAN stage trains.

    Normalisation layers are not clipped, since their scale is 1 by nature. The bound is `CLIP`.
    With more than `FEW_LAYERS` layers, or equalised learning rates, it is scaled by sqrt(`INPUTS` /
    inputs of the layer). Then an image is as large behind a narrow layer as behind a wide one. In
    equalised layers the weight that acts is clipped, not the parameter that Adam moves.
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
