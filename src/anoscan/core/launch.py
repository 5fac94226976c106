"""What torchrun says of this process; nothing here imports torch, so any command can ask."""

from __future__ import annotations

import os
from dataclasses import dataclass


@dataclass(frozen=True)
class Launch:
    """The place of a process among those that torchrun started.

    `rank` counts all of the `size` processes from 0, and `local_rank` the `local_size` of one
    machine.
    """

    rank: int
    size: int
    local_rank: int
    local_size: int


SINGLE = Launch(0, 1, 0, 1)


def launched() -> Launch | None:
    """Return the place of this process; None where it works alone.

    A single process that torchrun started works alone, too.
    """
    if "TORCHELASTIC_RUN_ID" not in os.environ or int(os.environ["WORLD_SIZE"]) == 1:
        return None
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
    return Launch(*(int(os.environ[name]) for name in names))
