"""How an error reaches the user: what failed, why it matters, what to do, and an exit code."""

from __future__ import annotations

from typing import TYPE_CHECKING

import typer

from vlm_lora_plugin.errors import AdapterError, VlmLoraError

if TYPE_CHECKING:
    from rich.console import Console

_TRACEBACK = "vlm_lora.traceback"


def exit_code(error: VlmLoraError) -> int:
    """Return 3 when training itself stopped, 2 when its input cannot be used."""
    from vlm_lora_plugin.reporting import failure

    return failure.exit_code(error)


def ended_by(end: SystemExit) -> VlmLoraError:
    """Return what is said where something that was called has ended the process before the command was done."""
    import traceback
    from importlib.metadata import packages_distributions

    modules = [frame.f_globals.get("__name__", "") for frame, _ in traceback.walk_tb(end.__traceback__)]
    top = next((name.partition(".")[0] for name in reversed(modules) if name), "")
    shipped = ", ".join(sorted(set(packages_distributions().get(top, ()))))
    return AdapterError(
        f"{modules[-1] if modules else 'Something'}{f' of {shipped}' if shipped else ''} has ended the process "
        f"(SystemExit: {end.code})",
        why="The command was not done by then.",
        fix="Tell its author what the traceback shows.",
    )


def remember_traceback(ctx: typer.Context, wanted: bool) -> bool:
    """Keep ``--traceback``, wherever on the command line it stands."""
    if wanted:
        ctx.find_root().meta[_TRACEBACK] = True
    return wanted


def wants_traceback(ctx: typer.Context) -> bool:
    """Return whether ``--traceback`` was given."""
    return bool(ctx.find_root().meta.get(_TRACEBACK))


def show(error: VlmLoraError, console: Console | None = None) -> None:
    """Print an error to standard error: a red panel on a terminal, plain lines elsewhere."""
    from vlm_lora_plugin.reporting import failure

    failure.show(error, console)
