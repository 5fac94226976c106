"""Ask at a terminal before a model is replaced or removed."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from anoscan.cli.options import option, output_of
from anoscan.core.errors import ExitCode
from anoscan.core.files import printable

Yes = Annotated[
    bool, option("--yes", "-y", help="Do not ask before a model is replaced or removed.")
]


def ask_before(change: str, model: Path, yes: bool) -> None:
    """Ask whether a change may be made to a model file, which `change` says in words.

    Nothing is asked with `yes`, where the file does not exist, or where stdin and stderr are not
    both terminals.

    Raises
    ------
    typer.Exit
        With `ExitCode.FAILED` after any answer but yes.
    """
    if yes or not model.exists() or not (sys.stdin.isatty() and sys.stderr.isatty()):
        return
    sys.stderr.write(f"{printable(change)} Go on? [y/N] ")
    sys.stderr.flush()
    if sys.stdin.readline().strip().lower() not in ("y", "yes"):
        output_of(False, False).note("nothing was changed")
        raise typer.Exit(ExitCode.FAILED)


def taken_back(model: Path) -> str:
    """Say which command takes the change of a model file back."""
    from anoscan.model import store

    name = model.stem if model.parent == store.models_folder() else str(model)
    return f"`anoscan models restore {name}` takes it back."
