"""Energy of the fine detail of images.

A place that is out of focus has less of it than normal places. A scratch, a spot or another texture
has more, or has it at another scale. Networks see this poorly, because they average detail away.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from anoscan.scoring.grid import blurred

FINER_THAN = (1, 2, 4)  # standard deviations, in pixels, of the blurs that remove detail
WINDOW = 1  # standard deviation, in pixels, of the window that an energy is a mean over
LEAST = (1 / 127.5) ** 2  # the square of a grey level of 8 bits: lower energies are noise


def energies(x: Tensor) -> list[Tensor]:
    """Return local mean squares (n, s, s) of what each blur of `FINER_THAN` removes of images.

    Images (n, c, s, s) are in [-1, 1], and the mean is over channels too.
    """
    pixels = x.cpu().numpy()
    fine = (pixels - blurred(pixels, sigma) for sigma in FINER_THAN)
    return [torch.from_numpy(blurred(np.square(f).mean(1), WINDOW)).to(x.device) for f in fine]
