"""Search the latents of images by gradient descent through the generator.

The search starts from a random latent, or from the encoder's (``refine``). By Schlegl et al. 2017,
AnoGAN (arXiv 1703.05921), section 2.2, it minimises over z

    (1 - lambda) sum |x - G(z)| + lambda sum |f(x) - f(G(z))|

with f the discriminator's last block and lambda = 0.1. With ``fool`` (Yeh et al. 2017, arXiv
1607.07539) the second sum is softplus(-D(G(z))), the sigmoid cross-entropy of G(z) towards "real".
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import softplus

from anoscan.core.runtime import random_stream
from anoscan.networks.architectures import Discriminator, Networks
from anoscan.scoring.choices import Inversion
from anoscan.scoring.terms.anogan import absolute, combined

RATE = 0.1  # learning rate of Adam, which the paper does not give; see docs/decisions.md
# Images that are searched together, and their number times their side in pixels, at most.
LANES, LANES_WIDE = 32, 1024


@dataclass(frozen=True)
class Found:
    """The latents that a search found, and the losses of all its steps.

    Parameters
    ----------
    z : Tensor of shape (n, d)
    residual, discrimination : Tensor of shape (steps + 1, n), float64
        The two parts of the loss of each image. The first row is from before the first step.
    """

    z: Tensor
    residual: Tensor
    discrimination: Tensor

    @property
    def loss(self) -> Tensor:
        """The loss that was minimised, (steps + 1, n), float64."""
        return combined(self.residual, self.discrimination)

    def first(self, n: int) -> Found:
        """Return the result of the first `n` images alone."""
        return Found(self.z[:n], self.residual[:, :n], self.discrimination[:, :n])


def latents(networks: Networks, x: Tensor, how: Inversion) -> Tensor:
    """Return latents (n, d) of images (n, c, s, s), by one pass of the encoder or by a search."""
    if how.mapping == "encoder":
        z: Tensor = networks.encoder(x)
        return z
    return search(networks, x, how).z


def search(networks: Networks, x: Tensor, how: Inversion, *, lanes: int | None = None) -> Found:
    """Search latents that bring G(z) near to images, for each image independently.

    The loss is a sum over images, Adam works element by element, and the start is E(x) or one
    random latent for all. Networks always see `lanes` images; where there are fewer, the last is
    repeated. Products of another shape are rounded differently, and hundreds of steps raise a
    difference in the last digit to a percent. Large images have fewer lanes: batches speed them up
    little, and a single image takes as long as a full batch.

    ``refine`` returns the best latent of all steps by the loss, so none is worse than E(x).
    ``search`` returns the last one, as in the paper.

    Parameters
    ----------
    networks : Networks
    x : Tensor of shape (n, c, s, s), n >= 1
        The images, in [-1, 1].
    how : Inversion
    lanes : int, optional
        By default it is 32 for images of up to 32x32, 16 at 64x64 and 4 at 256x256. Other values
        change the last digits of the result.
    """
    lanes = lanes or max(1, min(LANES, LANES_WIDE // x.shape[-1]))
    parts = []
    for some in (x[at : at + lanes] for at in range(0, len(x), lanes)):
        filled = torch.cat([some, some[-1:].expand(lanes - len(some), -1, -1, -1)])
        parts.append(_descend(networks, filled, how).first(len(some)))
    return Found(
        torch.cat([part.z for part in parts]),
        torch.cat([part.residual for part in parts], 1),
        torch.cat([part.discrimination for part in parts], 1),
    )


def _descend(networks: Networks, x: Tensor, how: Inversion) -> Found:
    """Take all steps for images that fill the lanes; no graph is kept from step to step."""
    with torch.no_grad():
        f = networks.discriminator.features(x)[-1]
        z = _start(networks, x, how)
    compare = _compare(networks, x, f, how)
    z.requires_grad_(True)
    adam = torch.optim.Adam([z], lr=RATE)
    best, lowest = z.detach().clone(), torch.full((len(x),), torch.inf, device=x.device).double()
    steps: list[tuple[Tensor, Tensor]] = []
    for step in range(how.length + 1):
        last = step == how.length
        with torch.set_grad_enabled(not last):
            residual, discrimination = compare(z)
            loss = combined(residual, discrimination)
        steps.append((residual.detach(), discrimination.detach()))
        better = loss.detach() < lowest
        lowest = torch.where(better, loss.detach(), lowest)
        best = torch.where(better[:, None], z.detach(), best)
        if not last:
            (z.grad,) = torch.autograd.grad(loss, z, torch.ones_like(loss))
            adam.step()
    residuals, discriminations = zip(*steps, strict=True)
    found = best if how.mapping == "refine" else z.detach()
    return Found(found, torch.stack(residuals), torch.stack(discriminations))


def _start(networks: Networks, x: Tensor, how: Inversion) -> Tensor:
    encoded: Tensor = networks.encoder(x)
    if how.mapping == "refine":
        return encoded.float().clone()
    # The encoder gives only the length of a latent. A draw on the CPU is the same for all devices.
    draw = torch.randn(1, encoded.shape[1], generator=random_stream(how.seed, "search-start"))
    return draw.to(x.device).repeat(len(x), 1)


def _compare(
    networks: Networks, x: Tensor, f: Tensor, how: Inversion
) -> Callable[[Tensor], tuple[Tensor, Tensor]]:
    """Return a function from latents (n, d) to residuals and discrimination losses (n,) float64."""
    discriminator: Discriminator = networks.discriminator
    decoder = networks.mirror[1]

    def losses(z: Tensor) -> tuple[Tensor, Tensor]:
        x_hat = decoder(z)
        features = discriminator.features(x_hat)
        if how.discrimination_loss == "fool":
            discrimination = softplus(-discriminator.realness(features)).double()
        else:
            discrimination = absolute(f, features[-1])
        return absolute(x, x_hat), discrimination

    return losses
