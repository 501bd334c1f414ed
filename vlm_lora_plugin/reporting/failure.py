"""How an error reaches the user: what failed, why it matters, what to do, and an exit code."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from vlm_lora_plugin.errors import TrainingError, VlmLoraError

if TYPE_CHECKING:
    from rich.console import Console

TRACEBACK_VARIABLE = "VLM_LORA_TRACEBACK"
"""Environment variable that asks for tracebacks of our own errors, too."""


def exit_code(error: VlmLoraError) -> int:
    """Return 3 when training itself stopped, 2 when its input cannot be used."""
    return 3 if isinstance(error, TrainingError) else 2


def show(error: VlmLoraError, console: Console | None = None) -> None:
    """Print an error to standard error: a red panel on a terminal, plain lines elsewhere."""
    from rich.panel import Panel
    from rich.text import Text

    from vlm_lora_plugin.reporting.console import SafeConsole

    console = console or SafeConsole(stderr=True)
    title = re.sub(r"(?<=.)([A-Z])", r" \1", type(error).__name__).capitalize()
    if not console.is_terminal:
        lines = [f"{title}: {error.what}", error.why, error.fix]
        console.print(Text("\n".join(line for line in lines if line)), soft_wrap=True)
        return
    body = Text(error.what, style="bold")
    for part, style in ((error.why, ""), (error.fix, "green")):
        if part:
            body.append(f"\n{part}", style=f"not bold {style}")
    console.print(Panel(body, title=title, title_align="left", border_style="red"))
