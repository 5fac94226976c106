"""The option tables of docs/cli.md, made of what ``anoscan COMMAND --help`` says.

``python docs/option_tables.py`` writes them between their marks; ``--check`` exits with 1 when
they are not up to date.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

import typer

from anoscan.cli import app

PAGE = Path(__file__).parent / "cli.md"
MARK = re.compile(r"(<!-- options: ([\w ]+) -->\n).*?(<!-- end -->)", re.DOTALL)


def fresh(text: str) -> str:
    """Give the page with all its tables made anew."""
    return MARK.sub(lambda mark: f"{mark[1]}\n{table(mark[2])}\n{mark[3]}", text)


def table(command: str) -> str:
    """Markdown table of the options of a command, such as ``train`` or ``models show``."""
    found: Any = typer.main.get_command(app)
    for part in command.split():
        found = found.commands[part]
    context = typer.Context(found)
    rows = [row(parameter, context) for parameter in found.params]
    lines = ["| option | meaning |", "|---|---|", *filter(None, rows)]
    return "\n".join(lines) + "\n"


def row(parameter: Any, context: typer.Context) -> str | None:
    """Row of one option; None for an argument."""
    if parameter.param_type_name == "argument":
        return None
    record = [text.replace("|", "\\|").strip() for text in parameter.get_help_record(context)]
    names = " ".join(f"`{name}`" for name in reversed(record[0].split(", ")))
    return f"| {names} | {re.sub(' +', ' ', record[1])} |"


if __name__ == "__main__":
    before = PAGE.read_text(encoding="utf-8")
    after = fresh(before)
    if "--check" in sys.argv:
        sys.exit("docs/cli.md: run python docs/option_tables.py" if after != before else 0)
    PAGE.write_text(after, encoding="utf-8")
