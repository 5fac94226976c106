"""The choices of the program, found by looking at its own folders.

A family is a sub-package (``architectures``, ``objectives``, ``encoders``, ``mappings``,
``terms``) and a choice is one file in it: ``objectives/wgan_gp.py`` is the objective ``wgan-gp``.
Its docstring describes it (the first line is what ``--help`` prints) and its ``ENTRY`` is what the
program uses. Names and summaries are read without importing the file, so that ``--help`` does not
wait for torch.
"""

from __future__ import annotations

import ast
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

from anoscan.core.errors import UsageError

# Of each family: the package it lies in, and what stands in a name where its file has an
# underscore, as the papers write it.
FAMILIES = {
    "architectures": ("networks", "-"),
    "objectives": ("networks", "-"),
    "encoders": ("networks", "-"),
    "mappings": ("networks", "_"),
    "terms": ("scoring", "_"),
}


@cache
def names(family: str) -> tuple[str, ...]:
    """Names of a family's choices, sorted.

    >>> "dcgan" in names("architectures")
    True
    """
    _, stroke = FAMILIES[family]
    folder = _folder(family)
    stems = (path.stem for path in folder.glob("*.py") if not path.stem.startswith("_"))
    return tuple(sorted(stem.replace("_", stroke) for stem in stems))


@cache
def description(family: str, name: str) -> str:
    """Whole docstring of a choice, read without importing it."""
    path = _folder(family) / f"{name.replace('-', '_')}.py"
    return ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""


def summary(family: str, name: str) -> str:
    """First line of a choice's docstring."""
    return description(family, name).partition("\n")[0]


def check(family: str, name: str, *others: str) -> str:
    """Return `name` when the family has it, or it is one of the `others`.

    Raises
    ------
    UsageError
        Naming the choices there are.
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
    """Entry of a choice; imports its file.

    Raises
    ------
    UsageError
        When the family has no such choice.
    """
    check(family, name)
    return import_module(f"anoscan.{FAMILIES[family][0]}.{family}.{name.replace('-', '_')}").ENTRY


def _folder(family: str) -> Path:
    return Path(__file__).parents[1] / FAMILIES[family][0] / family
