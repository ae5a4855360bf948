"""The command line: one module a command, one row an option."""

from __future__ import annotations

from emucsd.cli.main import main

__all__ = ["main"]
