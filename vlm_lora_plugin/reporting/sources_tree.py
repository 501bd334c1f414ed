"""Who set each value of a recipe, for people."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.text import Text
from rich.tree import Tree

from vlm_lora_plugin.planning.record import sources_document

if TYPE_CHECKING:
    from vlm_lora_plugin.planning.resolved import ResolvedRecipe


def sources_tree(recipe: ResolvedRecipe) -> Tree:
    """Return each value that the user or a preset set, with who it was.

    What the hardware set stands with its reasons in :func:`~vlm_lora_plugin.reporting.hardware_table.hardware_tree`.
    """
    tree = Tree(Text("recipe", "bold"), guide_style="dim")
    for key, entry in sources_document(recipe).items():
        if entry["source"] == "hardware":
            continue
        value = str(entry["value"]).lower() if isinstance(entry["value"], bool) else str(entry["value"])
        style = "yellow" if entry["source"] == "user" else "green"
        tree.add(Text.assemble(f"{key} ", (value, style), (f"  {recipe.source(key)}", "dim")))
    return tree
