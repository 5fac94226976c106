"""Whether the operations of a batch are recorded as a graph, which another program will run.

A recorded graph takes batches of any size. So no step may depend on the number of images, and no
number may leave torch. Steps that are faster otherwise ask `recording`.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

_recording: ContextVar[bool] = ContextVar("recording", default=False)


def recording() -> bool:
    """Return whether a graph is being recorded."""
    return _recording.get()


@contextmanager
def as_graph() -> Iterator[None]:
    """Make `recording` true in this context."""
    token = _recording.set(True)
    try:
        yield
    finally:
        _recording.reset(token)
