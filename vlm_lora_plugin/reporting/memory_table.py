"""The memory of a job's costliest step, as people read it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.table import Table
from rich.text import Text

from vlm_lora_plugin.planning.memory import GIB

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from vlm_lora_plugin.job.memory_changes import Advice
    from vlm_lora_plugin.job.memory_plan import MemoryPlan

_BAR = 40
LEAST_SHOWN = 0.0005
"""Share of all that is not stated below which a part has no line of its own."""


def memory_table(plan: MemoryPlan) -> Table:
    """Return what the peak of the costliest batch is for, in GiB, with a bar for each part."""
    device = plan.worst.device
    whole = max(device.total, device.usable or 0)
    table = Table(title=f"{plan.model}: memory of one device at the peak of a step", title_justify="left", box=None)
    table.add_column("for")
    table.add_column("GiB", justify="right")
    table.add_column("", justify="left")
    table.add_column("", style="dim")
    least = LEAST_SHOWN * sum(part.bytes for part in device.parts if part.source != "stated")
    for part in (part for part in device.parts if part.bytes >= least):
        bar = "█" * round(part.bytes / whole * _BAR)
        table.add_row(part.name, f"{part.bytes / GIB:.2f}", Text(bar, style="cyan"), part.source)
    table.add_row("total", f"{device.total / GIB:.2f}", "", "", style="bold")
    return table


def verdict(plan: MemoryPlan) -> str:
    """Return whether it fits, in one sentence."""
    device, fit = plan.worst.device, plan.recipe.fit
    if fit is None or device.usable is None or device.headroom is None:
        return f"Needs {device.total / GIB:.2f} GiB. Name a device to learn whether that fits: --hardware 1x24."
    room = f"{device.total / GIB:.2f} of {device.usable / GIB:.2f} usable GiB on each device of {fit.hardware}"
    if device.fits:
        return f"It fits: {room}, {device.headroom / GIB:.2f} GiB left."
    return f"It does not fit: {room}, {-device.headroom / GIB:.2f} GiB too much."


def where(plan: MemoryPlan) -> str:
    """Return where the peak is, in one sentence."""
    peak = plan.worst.step.peak
    part = f" of {peak.component}" if peak.component else ""
    return f"The peak is in the {peak.phase}{' pass' if peak.phase != 'optimizer' else ''}{part}, at {peak.operation}."


def advice_lines(plan: MemoryPlan, advised: Sequence[Advice]) -> Iterator[str]:
    """Return what to change, one line each: what to type, what a device takes then, and what it costs."""
    if plan.fits is None or not advised:
        return
    if plan.fits:
        yield "There is room for any one of:"
    else:
        yield "To make it fit, in this order:" if advised[-1].fits else "These help, and are not enough:"
    for advice in advised:
        yield f"  {advice.change}  ({advice.total / GIB:.2f} GiB; {advice.change.cost})"
