"""Signals that end the program; a line of results is written whole before."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager


class _Ending:
    """Raises KeyboardInterrupt at a signal, or after the line that is being written."""

    def __init__(self) -> None:
        self.asked = self.in_line = False

    def __call__(self, number: int, frame: object) -> None:
        # A terminal that closes may hang up twice, which must not disturb the end of the program.
        again, self.asked = self.asked, True
        if again and signal.Signals(number).name == "SIGHUP":
            return
        # The second Ctrl-C also ends a line that a reader does not take.
        if again or not self.in_line:
            raise KeyboardInterrupt


_ending = _Ending()


@contextmanager
def end_cleanly() -> Iterator[None]:
    """Raise KeyboardInterrupt in the main thread at Ctrl-C, SIGTERM and SIGHUP.

    A signal that is ignored, as SIGHUP is under nohup, stays ignored.
    """
    _ending.asked = False
    numbers = [getattr(signal, name, None) for name in ("SIGINT", "SIGTERM", "SIGHUP")]
    before = {
        number: signal.signal(number, _ending)
        for number in numbers
        if number is not None and signal.getsignal(number) is not signal.SIG_IGN
    }
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def whole_line() -> Iterator[None]:
    """Put KeyboardInterrupt off until what is written in this context is complete.

    Contexts may nest. Only the outermost one raises.
    """
    outer, _ending.in_line = _ending.in_line, True
    try:
        yield
    finally:
        _ending.in_line = outer
    if _ending.asked and not outer:
        raise KeyboardInterrupt
