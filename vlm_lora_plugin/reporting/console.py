"""Where people read what a command says."""

from __future__ import annotations

import os

from rich.console import Console

_WIDTH = 160


def make_console(*, stderr: bool = False) -> Console:
    """Return a console on standard output or error; where that is no terminal, lines are not broken at 80 columns."""
    console = Console(stderr=stderr)
    return console if console.is_terminal or "COLUMNS" in os.environ else Console(stderr=stderr, width=_WIDTH)
