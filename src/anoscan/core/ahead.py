"""Do the next piece of work in a thread while the last one is used."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")


def ahead(items: Iterator[T], name: str) -> Iterator[T]:
    """Yield items, none of which may be None, while a thread called `name` makes the next one.

    Networks and decoders leave the interpreter free, so both sides run at the same time.
    """
    with ThreadPoolExecutor(1, thread_name_prefix=name) as thread:
        coming = thread.submit(next, items, None)
        while (item := coming.result()) is not None:
            coming = thread.submit(next, items, None)
            yield item
