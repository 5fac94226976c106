"""The choices that the program offers, found by listing its own folders.

A family is a sub-package, such as ``objectives``. A choice is one file in it:
``objectives/wgan_gp.py`` is the objective ``wgan-gp``. The docstring of the file describes the
choice (``--help`` prints the first line), and the program uses its ``ENTRY``. Names and summaries
are read without importing the file, so that ``--help`` does not wait for torch.
"""

from __future__ import annotations

import ast
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

from anoscan.core.errors import UsageError

# For each family: the package that holds it, and the character that a name has where its file has
# an underscore. Names are written as in the papers.
FAMILIES = {
    "architectures": ("networks", "-"),
    "objectives": ("networks", "-"),
    "encoders": ("networks", "-"),
    "mappings": ("networks", "_"),
    "terms": ("scoring", "_"),
}


@cache
def names(family: str) -> tuple[str, ...]:
    """Return the names of the choices of a family, sorted.

    >>> "dcgan" in names("architectures")
    True
    """
    _, stroke = FAMILIES[family]
    folder = _folder(family)
    stems = (path.stem for path in folder.glob("*.py") if not path.stem.startswith("_"))
    return tuple(sorted(stem.replace("_", stroke) for stem in stems))


@cache
def description(family: str, name: str) -> str:
    """Return the whole docstring of a choice, read without importing its file."""
    path = _folder(family) / f"{name.replace('-', '_')}.py"
    return ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""


def summary(family: str, name: str) -> str:
    """Return the first line of the docstring of a choice."""
    return description(family, name).partition("\n")[0]


def check(family: str, name: str, *others: str) -> str:
    """Return `name` if it is a choice of the family, or one of the `others`.

    Raises
    ------
    UsageError
        When it is neither; the message names the choices.
    """
    known = (*others, *names(family))
    if name not in known:
        option = family.removesuffix("s")
        raise UsageError(
            f"--{option} must be one of {', '.join(known)}. Got {name!r}.",
            hint=f"anoscan train --help describes each {option}.",
        )
    return name


def load(family: str, name: str) -> Any:
    """Import the file of a choice and return its ``ENTRY``.

    Raises
    ------
    UsageError
        When the family has no such choice.
    """
    check(family, name)
    return import_module(f"anoscan.{FAMILIES[family][0]}.{family}.{name.replace('-', '_')}").ENTRY


def _folder(family: str) -> Path:
    return Path(__file__).parents[1] / FAMILIES[family][0] / family
