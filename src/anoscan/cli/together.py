"""What torchrun changes of the command line: one process speaks, and only ``train`` is shared."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import typer

from anoscan.core.errors import (
    AnoscanError,
    ExitCode,
    ProcessLost,
    TrainingInterrupted,
    UsageError,
)
from anoscan.core.launch import launched

_SHARED = "train"  # the command that processes share


def check_command(name: str | None) -> None:
    """Refuse what processes cannot share.

    Raises
    ------
    UsageError
        When torchrun started several processes for another command than ``train``.
    """
    if name is not None and name != _SHARED and launched() is not None:
        raise UsageError(
            f"torchrun starts several processes, which can share `anoscan {_SHARED}` only.",
            hint=f"Start it without torchrun: anoscan {name}.",
        )


def leads() -> bool:
    """Say whether this process leads the others, or works alone."""
    launch = launched()
    return launch is None or launch.rank == 0


def silent() -> bool:
    """Say whether this process leaves messages to another one on its machine."""
    launch = launched()
    return launch is not None and launch.local_rank > 0


@contextmanager
def together(device: str) -> Iterator[str]:
    """Train with the other processes that torchrun started; yield the device to train on.

    Without torchrun it is `device`. A process that does not lead does its part, and ends.

    Raises
    ------
    typer.Exit
        In a process that does not lead, when the training has ended.
    UsageError
        When the processes cannot train on this device.
    ProcessLost
        In the first process that finds out that another one has ended, or that fails itself.
    """
    if (launch := launched()) is None:
        yield device
        return
    from anoscan.core import team
    from anoscan.networks.loop import stop_on_interrupt
    from anoscan.training.together import follow

    chosen = team.device_for(launch, device)
    with team.joined(launch, chosen) as crew:
        try:
            if crew.rank == 0:
                yield chosen
                return
            follow(crew)
        except ProcessLost as error:
            crew.broken = True
            with stop_on_interrupt():  # torchrun ends all processes when one has ended
                found = crew.lost(error)
            if not crew.first_to_speak():
                raise typer.Exit(ExitCode.FAILED) from error
            raise found from error
        except TrainingInterrupted:
            if crew.rank == 0:
                raise
            raise typer.Exit(ExitCode.INTERRUPTED) from None
        except Exception as error:
            if crew.rank == 0 and not crew.broken:
                raise  # the others wait for an order, which will be the last
            crew.broken = True
            crew.first_to_speak()
            where = f"This is the process of rank {crew.rank} (of {crew.size})."
            if isinstance(error, AnoscanError):
                raise ProcessLost(error.message, hint=where) from error
            error.add_note(where)
            raise
        raise typer.Exit(ExitCode.DONE)
