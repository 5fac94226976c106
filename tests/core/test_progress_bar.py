from __future__ import annotations

import sys
import types
from typing import Any

import pytest

from anoscan.core.progress import Progress
from anoscan.core.progress_bar import bars

STAGES = [
    Progress("gan", 10, 20),
    Progress("gan", 20, 20),
    Progress("reading", 3, 0),
    Progress("a <new> stage", 1, 2),
]


def test_progress_is_handed_on_whether_it_is_shown_or_not() -> None:
    for shown in (False, True):
        told: list[Progress] = []
        with bars(shown, told.append) as report:
            for progress in STAGES:
                report(progress)
        assert told == STAGES


def test_bars_are_on_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    with bars(False, lambda progress: None) as report:
        report(STAGES[0])
    assert capsys.readouterr() == ("", "")
    with bars(True, lambda progress: None) as report:
        for progress in STAGES:
            report(progress)
    shown = capsys.readouterr()
    assert shown.out == ""
    assert "learning normal" in shown.err
    assert "20/20" in shown.err
    assert "a <new> stage" in shown.err


def test_a_notebook_shows_one_output_that_is_replaced(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    states: list[Any] = []
    handle = types.SimpleNamespace(update=states.append)

    def display(state: Any, display_id: bool) -> Any:
        assert display_id
        states.append(state)
        return handle

    shell = types.SimpleNamespace(kernel=object())
    module: Any = types.ModuleType("IPython")
    module.get_ipython = lambda: shell
    shown: Any = types.ModuleType("IPython.display")
    shown.display = display
    monkeypatch.setitem(sys.modules, "IPython", module)
    monkeypatch.setitem(sys.modules, "IPython.display", shown)
    with bars(True, lambda progress: None) as report:
        for progress in STAGES:
            report(progress)
    assert capsys.readouterr() == ("", "")
    last = states[-1]
    assert repr(last).splitlines()[0] == "learning normal 20/20"
    page = last._repr_html_()
    assert '<progress max="20" value="20">' in page
    assert "a &lt;new&gt; stage" in page
    assert len(states) < 2 * len(STAGES)


def test_a_bar_ends_with_an_error(capsys: pytest.CaptureFixture[str]) -> None:
    def broken() -> None:
        with bars(True, lambda progress: None) as report:
            report(STAGES[0])
            raise ValueError("broken")

    with pytest.raises(ValueError, match="broken"):
        broken()
    assert "10/20" in capsys.readouterr().err
