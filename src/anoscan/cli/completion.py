"""What a shell may complete: names of models, and the choices of options.

Nothing here imports torch, because a user waits for the answer while typing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

Complete = Callable[[str], Sequence[str]]


def models(incomplete: str) -> Sequence[str]:
    """Return the names of the models in the store."""
    return _names(removed=False)


def known_models(incomplete: str) -> Sequence[str]:
    """Return the names of the models in the store, and of those that can be restored."""
    return _names(removed=True)


def _names(*, removed: bool) -> Sequence[str]:
    from anoscan.core.errors import AnoscanError
    from anoscan.model import store, versions

    try:
        found = [path.stem for path in store.files()]
    except AnoscanError:  # an error has no place in the answer
        return []
    return sorted([*found, *(versions.removed(store.models_folder()) if removed else [])])


def choices(metavar: str | None) -> Complete | None:
    """Return what completes an option whose metavar lists words, such as auto|cpu; else None.

    Words in capitals stand for values of their own. Where these are files, the shell completes
    them, and LIST means that several words may be given with commas.
    """
    if metavar is None or "|" not in metavar or "MASK" in metavar:
        return None
    words = [word for word in metavar.split("|") if word != word.upper() or word.isdigit()]
    return among(words)


def among(words: Sequence[str]) -> Complete:
    """Return what completes one of some words."""

    def complete(incomplete: str) -> Sequence[str]:
        return words

    return complete


def listed(words: Sequence[str]) -> Complete:
    """Return what completes some of these words, with commas between."""

    def complete(incomplete: str) -> Sequence[str]:
        *given, _ = incomplete.split(",")
        return [",".join([*given, word]) for word in words if word not in given]

    return complete
