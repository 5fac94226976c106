"""The command line: it declares commands, and each command calls the library."""

from __future__ import annotations

from anoscan.cli.app import app, main

__all__ = ["app", "main"]
