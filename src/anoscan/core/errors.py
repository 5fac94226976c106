"""Errors and warnings that a user may meet, and the exit code that each gives the command."""

from __future__ import annotations

from enum import IntEnum, unique


@unique
class ExitCode(IntEnum):
    """Exit codes of the ``anoscan`` command; docs/cli.md explains each."""

    DONE = 0
    FAILED = 1
    USAGE = 2
    SKIPPED = 3
    ANOMALY = 4
    DRIFT = 5
    BUG = 70
    INTERRUPTED = 130


class AnoscanError(Exception):
    """An expected failure, such as bad input, an unusable model or a training that diverged.

    `message` is one sentence that says what is wrong, and with which file or option. `hint` says
    what the user can do about it.
    """

    exit_code = ExitCode.FAILED

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        if hint is not None:
            self.add_note(hint)  # Python shows it below the message


class AnoscanWarning(UserWarning):
    """Something about a model or a result that its user should know, such as a failed check."""


class UsageError(AnoscanError):
    """A value that no command accepts, such as an unknown objective."""

    exit_code = ExitCode.USAGE


class InputError(AnoscanError):
    """Images or labels that cannot be used."""


class ModelError(AnoscanError):
    """A model that is missing, damaged, foreign or newer than this program."""


class TrainingDiverged(AnoscanError):
    """The losses stopped being finite, and going back to an earlier state did not help."""


class ProcessLost(AnoscanError):
    """Another process of the same training has ended, or does not answer."""


class TrainingInterrupted(AnoscanError):
    """The user stopped the training, which left a checkpoint behind."""

    exit_code = ExitCode.INTERRUPTED
