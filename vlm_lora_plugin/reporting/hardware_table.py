"""What a machine sets in a recipe, with the reason of each setting."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.text import Text
from rich.tree import Tree

if TYPE_CHECKING:
    from vlm_lora_plugin.planning.plan import HardwarePlan


def hardware_tree(plan: HardwarePlan, warning: str | None = None) -> Tree:
    """Return the settings one below the other, then the predicted memory of one device, then advice.

    Args:
        plan: The recipe on its hardware.
        warning: What speaks against it.
    """
    tree = Tree(Text.assemble(("hardware ", "bold"), (str(plan.hardware), "bold")), guide_style="dim")
    for setting in plan.settings:
        value = str(setting.value).lower() if isinstance(setting.value, bool) else str(setting.value)
        style = "yellow" if setting.by_user else "green"
        tree.add(Text.assemble(f"{setting.key} ", (value, style), (f"  {setting.reason}", "dim")))
    if plan.memory is not None:
        whose = "counted in this model" if plan.counted else "of the published model"
        known = "" if plan.activations_known else "; activations and logits of a model of this size are unknown"
        tree.add(Text.assemble(("memory of a device ", "bold"), f"{plan.memory.sum()}, {whose}{known}"))
    for line in plan.notes:
        tree.add(Text(line, style="yellow"))
    if warning:
        tree.add(Text(warning, style="bold yellow"))
    return tree
