"""The command line: declarations, and one call each."""

from __future__ import annotations

from anoscan.cli.app import app, main

__all__ = ["app", "main"]
