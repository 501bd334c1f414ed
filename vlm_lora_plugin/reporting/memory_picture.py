"""The picture of a step's memory: how much is alive from its first operation to its last."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from vlm_lora_plugin.planning.memory import GIB
from vlm_lora_plugin.reporting.curves import draw_curves, finish, from_zero, new_figure, save, set_title

if TYPE_CHECKING:
    from vlm_lora_plugin.job.memory_plan import MemoryPlan


def draw_memory(plan: MemoryPlan, picture: Path) -> None:
    """Draw the bytes alive over the operations of the costliest step, a curve for each phase, and what a device has.

    Args:
        plan: What was traced.
        picture: A PNG file to write.
    """
    worst = plan.worst
    extra = worst.device.total - worst.step.peak.bytes
    figure = new_figure(9, 4.5)
    axes = figure.add_subplot()
    curves: dict[str, list[tuple[int, float]]] = {}
    for number, phase, size in worst.step.curve:
        curves.setdefault(phase, []).append((number, (size + extra) / GIB))
    draw_curves(axes, {phase: points for phase, points in curves.items() if phase != "start"}, {})
    if worst.device.usable is not None:
        axes.axhline(worst.device.usable / GIB, color="black", linestyle=":", label="usable")
    set_title(axes, f"{plan.model}: {worst.name}")
    axes.set_xlabel("operations called")
    from_zero(axes)
    finish(axes, "GiB of one device, the reserve included")
    save(figure, picture)
