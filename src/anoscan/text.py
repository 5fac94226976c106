"""File names as text: they are data, shown but never obeyed."""

from __future__ import annotations

_FORMULA_STARTS = ("=", "+", "-", "@", "\t", "\r", "\n")


def encodable(name: str) -> str:
    r"""File name with bytes that are not UTF-8 written as ``\xff``."""
    return "".join(f"\\x{ord(c) - 0xDC00:02x}" if "\udc80" <= c <= "\udcff" else c for c in name)


def printable(name: str) -> str:
    """File name without control characters or broken Unicode: shown, never obeyed."""
    return "".join(
        c if c.isprintable() else c.encode("unicode_escape").decode() for c in encodable(name)
    )


def defused(cell: str) -> str:
    """CSV cell that no spreadsheet runs as a formula."""
    return f"'{cell}" if cell.startswith(_FORMULA_STARTS) else cell
