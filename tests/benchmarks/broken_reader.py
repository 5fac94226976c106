"""Readers and cases that misbehave, for test_faults.py; decode workers import this, so it is small.

Their memory is limited, and torch would not fit.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Sequence

import numpy as np

from anoscan.core.errors import InputError
from anoscan.images.decode import Decoded
from anoscan.images.files import ImageFile
from benchmarks.faults import images
from benchmarks.faults.campaign import Outcome


def read_badly(image: ImageFile) -> Decoded:
    """Misbehave as the environment says."""
    how = os.environ["HOW"]
    if how == "raises":
        raise KeyError("a tag")
    if how == "dies":
        os.kill(os.getpid(), signal.SIGSEGV)
    if how == "complains":
        os.write(2, b"libpng error: bad\n")
    if how == "two lines":
        raise InputError("damaged\nimage")
    decoded = images.read(image)
    decoded.pixels[0, 0] = np.nan
    return decoded


def end(seed: int, numbers: Sequence[int]) -> list[Outcome]:
    """End the process at case 5."""
    if 5 in numbers:
        os.kill(os.getpid(), signal.SIGKILL)
    return [Outcome(number, "held", "") for number in numbers]
