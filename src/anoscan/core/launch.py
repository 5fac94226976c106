"""What torchrun says of this process; nothing here imports torch, so any command can ask."""

from __future__ import annotations

import os
from dataclasses import dataclass


@dataclass(frozen=True)
class Launch:
    """The place of a process among those that torchrun started.

    `rank` counts all of the `size` processes from 0, and `local_rank` those of one machine.
    """

    rank: int
    size: int
    local_rank: int


def launched() -> Launch | None:
    """Return the place of this process; None where it works alone.

    A single process that torchrun started works alone, too.
    """
    if "TORCHELASTIC_RUN_ID" not in os.environ or int(os.environ["WORLD_SIZE"]) == 1:
        return None
    rank, size, local = (int(os.environ[name]) for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"))
    return Launch(rank, size, local)
