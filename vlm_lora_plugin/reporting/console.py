"""Where people read what a command says."""

from __future__ import annotations

import os

from rich.console import Console

_WIDTH = 160


def make_console() -> Console:
    """Return a console on standard output; where that is no terminal, lines are not broken at 80 columns."""
    console = Console()
    return console if console.is_terminal or "COLUMNS" in os.environ else Console(width=_WIDTH)
