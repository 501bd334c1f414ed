"""Where people read what a command says."""

from __future__ import annotations

import os

from rich.console import Console

_WIDTH = 160


def make_console(*, stderr: bool = False) -> Console:
    """Return a console on standard output or error; where that is not a terminal, lines are not broken at 80 columns.

    Of several processes of one job only the first says anything.
    """
    quiet = os.environ.get("RANK", "0") != "0"
    console = Console(stderr=stderr, quiet=quiet)
    if console.is_terminal or "COLUMNS" in os.environ:
        return console
    return Console(stderr=stderr, quiet=quiet, width=_WIDTH)
