"""Where people read what a command says."""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import Any

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment

from vlm_lora_plugin.outside.display import harmless, never_crash

_WIDTH = 160


class SafeConsole(Console):
    """A console on which text from files does nothing: no control characters, no rich markup, no emoji codes.

    What its stream's encoding lacks is spelled out, so that a report in ASCII or a POSIX locale never ends the command.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(**{"markup": False, "emoji": False, **options})
        never_crash(self.file)

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """Return what is printed, every part of it harmless; rich's own cursor movements stay."""
        for segment in super().render(renderable, options):
            text, style, control = segment
            yield segment if control else Segment(harmless(text), style)


def make_console(*, stderr: bool = False) -> Console:
    """Return a console on standard output or error; where that is not a terminal, lines are not broken at 80 columns.

    Of several processes of one job only the first says anything.
    """
    quiet = os.environ.get("RANK", "0") != "0"
    console = SafeConsole(stderr=stderr, quiet=quiet)
    if console.is_terminal or "COLUMNS" in os.environ:
        return console
    return SafeConsole(stderr=stderr, quiet=quiet, width=_WIDTH)
