"""Bars that show how far a job is, on stderr or in a notebook; only for who asks for them."""

from __future__ import annotations

import html
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from typing import Any

from anoscan.core.progress import STAGES, OnProgress, Progress

_SECONDS = 0.2  # between two states of a bar in a notebook


@contextmanager
def bars(shown: bool, on_progress: OnProgress) -> Iterator[OnProgress]:
    """Yield what takes the progress of a job, hands it on, and shows it where that is wanted.

    A notebook shows the bars below its cell. Elsewhere they are on stderr, where one that is no
    terminal gets only the last state.
    """
    if not shown:
        yield on_progress
        return
    bar = _Notebook() if _in_notebook() else _Stderr()

    def both(progress: Progress) -> None:
        on_progress(progress)
        bar.update(progress)

    with bar:
        yield both


def _in_notebook() -> bool:
    module = sys.modules.get("IPython")
    return module is not None and hasattr(module.get_ipython(), "kernel")


class _Stderr:
    """One bar for each stage, drawn by rich."""

    def __init__(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
        from rich.progress import Progress as Bars

        console = Console(file=sys.stderr, force_jupyter=False, markup=False, highlight=False)
        columns = (BarColumn(bar_width=20), MofNCompleteColumn(), TimeElapsedColumn())
        self._bars = Bars(
            TextColumn("{task.description}", markup=False),
            *columns,
            console=console,
            redirect_stdout=False,
            redirect_stderr=False,
        )
        self._tasks: dict[str, Any] = {}

    def __enter__(self) -> _Stderr:
        self._bars.start()
        return self

    def __exit__(self, *failure: object) -> None:
        self._bars.stop()

    def update(self, progress: Progress) -> None:
        if progress.stage not in self._tasks:
            name = STAGES.get(progress.stage, progress.stage)
            self._tasks[progress.stage] = self._bars.add_task(name, total=None)
        total = progress.total_images or None
        self._bars.update(self._tasks[progress.stage], completed=progress.images, total=total)


class _Notebook:
    """The same in a notebook, where one output is replaced again and again."""

    def __init__(self) -> None:
        self._stages: dict[str, Progress] = {}
        self._shown: Any = None
        self._at = 0.0

    def __enter__(self) -> _Notebook:
        return self

    def __exit__(self, *failure: object) -> None:
        self._show()

    def update(self, progress: Progress) -> None:
        self._stages[progress.stage] = progress
        if time.monotonic() - self._at > _SECONDS:
            self._show()

    def _show(self) -> None:
        if not self._stages:
            return
        display: Callable[..., Any] = import_module("IPython.display").display

        self._at = time.monotonic()
        state = _State(list(self._stages.values()))
        if self._shown is None:
            self._shown = display(state, display_id=True)
        else:
            self._shown.update(state)


class _State:
    """The state of all stages, as text or HTML."""

    def __init__(self, stages: list[Progress]) -> None:
        self._stages = stages

    def __repr__(self) -> str:
        return "\n".join(" ".join(_words(stage)) for stage in self._stages)

    def _repr_html_(self) -> str:
        rows = []
        for stage in self._stages:
            name, done = map(html.escape, _words(stage))
            most = f'max="{stage.total_images}" ' if stage.total_images else ""
            bar = f'<progress {most}value="{stage.images}"></progress>'
            rows.append(f"<div>{bar} {name} {done}</div>")
        return "".join(rows)


def _words(stage: Progress) -> tuple[str, str]:
    total = f"/{stage.total_images:,}" if stage.total_images else ""
    return STAGES.get(stage.stage, stage.stage), f"{stage.images:,}{total}"
