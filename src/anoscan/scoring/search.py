"""Latents of images without the encoder, or after it: gradient descent through the generator.

Schlegl et al. 2017, AnoGAN (arXiv 1703.05921), section 2.2: minimise over z

    (1 - lambda) sum |x - G(z)| + lambda sum |f(x) - f(G(z))|

with f the discriminator's last block and lambda = 0.1; or, with the discriminator's word in place
of its features (``fool``; Yeh et al. 2017, arXiv 1607.07539), the sigmoid cross-entropy of G(z)
towards "real", softplus(-D(G(z))).
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

RATE = 0.1  # of Adam; the paper does not say. See docs/benchmarks.md
LANES, LANES_WIDE = 32, 1024  # at most so many images at a time, so many pixels side by side


@dataclass(frozen=True)
class Found:
    """Latents, and what each step said; rows are steps, from before the first to after the last.

    Parameters
    ----------
    z : Tensor of shape (n, d)
    residual, discrimination : Tensor of shape (steps + 1, n), float64
    """

    z: Tensor
    residual: Tensor
    discrimination: Tensor

    @property
    def loss(self) -> Tensor:
        """What was minimised, (steps + 1, n)."""
        return combined(self.residual, self.discrimination)

    def first(self, n: int) -> Found:
        """Of the first `n` images only."""
        return Found(self.z[:n], self.residual[:, :n], self.discrimination[:, :n])


def latents(networks: Networks, x: Tensor, how: Inversion) -> Tensor:
    """Latents (n, d) of images (n, c, s, s), by one pass of the encoder or by a search."""
    if how.mapping == "encoder":
        z: Tensor = networks.encoder(x)
        return z
    return search(networks, x, how).z


def search(networks: Networks, x: Tensor, how: Inversion, *, lanes: int | None = None) -> Found:
    """Latents that bring G(z) near to images, each image for itself.

    No image's latent depends on the others or on how many there are: the loss is a sum over
    images, Adam works element by element, the start is E(x) or one draw for all, and networks see
    `lanes` images at a time, the last of them repeated where there are fewer. (A product of other
    shape rounds otherwise, and hundreds of steps make a percent of the last digit.) Large images
    gain little from company, and a lone one pays for all lanes: there are fewer then.

    ``refine`` gives the best latent of all steps by the loss, so that none is worse than E(x);
    ``search`` the last one, as the paper.

    Parameters
    ----------
    networks : Networks
        Frozen.
    x : Tensor of shape (n, c, s, s), n >= 1
    how : Inversion
    lanes : int, optional
        By default 32 for images of up to 32x32, 16 at 64x64, 4 at 256x256. Other values give other
        last digits.
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
    """All steps for images that fill the lanes; no graph is kept from one step to the next."""
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
    # The encoder only says how long a latent is; the draw is on the CPU, the same on every device.
    draw = torch.randn(1, encoded.shape[1], generator=random_stream(how.seed, "search-start"))
    return draw.to(x.device).repeat(len(x), 1)


def _compare(
    networks: Networks, x: Tensor, f: Tensor, how: Inversion
) -> Callable[[Tensor], tuple[Tensor, Tensor]]:
    """Function from latents (n, d) to residuals and discrimination losses, both (n,) float64."""
    discriminator: Discriminator = networks.discriminator

    def losses(z: Tensor) -> tuple[Tensor, Tensor]:
        x_hat = networks.generator(z)
        features = discriminator.features(x_hat)
        if how.discrimination_loss == "fool":
            discrimination = softplus(-discriminator.realness(features)).double()
        else:
            discrimination = absolute(f, features[-1])
        return absolute(x, x_hat), discrimination

    return losses
