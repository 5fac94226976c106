"""Energy of the fine detail of images.

A place that is out of focus has less of it than normal places. A scratch, a spot or another texture
has more, or has it at another scale. Networks see this poorly, because they average detail away.
"""

from __future__ import annotations

import functools

from torch import Tensor

from anoscan.scoring.grid import Filter, blurring, to_grid

FINER_THAN = (1, 2, 4)  # standard deviations, in pixels, of the blurs that remove detail
WIDEST = 1 / 16  # of them in sides: in a small image a wider blur removes more than detail
WINDOW = 1  # standard deviation, in pixels, of the window that an energy is a mean over
LEAST = (1 / 127.5) ** 2  # the square of a grey level of 8 bits: lower energies are noise


def blurs(side: int) -> list[int]:
    """Return those of `FINER_THAN` that suit images with `side` pixels a side."""
    return [sigma for sigma in FINER_THAN if sigma <= WIDEST * side]


def energies(x: Tensor) -> list[Tensor]:
    """Return local mean squares (n, g, g) of what each of the `blurs` removes of images.

    Images (n, c, s, s) are in [-1, 1], and the mean is over channels too. The result is on the grid
    of the layers of anomaly maps.
    """
    side = x.shape[-1]
    window = _window(side)
    fine = (x - blurring(side, sigma)(x) for sigma in blurs(side))
    return [window(f.square().mean(1)) for f in fine]


@functools.lru_cache
def _window(side: int) -> Filter:
    return to_grid(side).after(blurring(side, WINDOW))
