"""How many channels images have, and which of them pictures show."""

from __future__ import annotations

from typing import Any

from anoscan.core.errors import UsageError

PLAIN_CHANNELS = (1, 3)  # grey and RGB, which become each other
MOST_CHANNELS = 16
AS_STORED = 0  # asks a reader for the channels that a file has


def channels_in_words(channels: Any) -> str:
    """Say what images with so many channels are; '' where that is no number.

    >>> channels_in_words(1), channels_in_words(3), channels_in_words(5)
    ('grey', 'RGB', '5 channels')
    """
    if not isinstance(channels, int) or channels < 1:
        return ""
    return {1: "grey", 3: "RGB"}.get(channels, f"{channels} channels")


def channels_named(text: str, channels: int | None) -> tuple[int, ...]:
    """Return the numbers of channels, from 0, of a text such as ``4,3,2``, which counts from 1.

    `channels` is how many there are; None where that is not known.

    Raises
    ------
    UsageError
        When the text is not one or three numbers of channels.
    """
    parts = [part.strip()[:9] for part in text.split(",")]
    most = MOST_CHANNELS if channels is None else channels
    numbers = [int(part) if part.isascii() and part.isdecimal() else 0 for part in parts]
    if len(numbers) not in (1, 3) or not all(1 <= number <= most for number in numbers):
        raise UsageError(
            f"--show-channels must be one or three numbers from 1 to {most}, as 3,2,1. "
            f"Got {text!r}."
        )
    return tuple(number - 1 for number in numbers)
