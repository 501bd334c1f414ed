"""Which parameters of an XComposer learn, and what its partial LoRA rules out."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vlm_lora_plugin.contract import TrainableSelection
from vlm_lora_plugin.errors import SelectionError

if TYPE_CHECKING:
    from vlm_lora_plugin.recipe import Recipe


def select(recipe: Recipe) -> TrainableSelection:
    """Return the recipe's own rules.

    Raises:
        SelectionError: It asks for DoRA.
    """
    if recipe.lora.use_dora and any(rule.means == "lora" for rule in recipe.rules):
        raise SelectionError(
            "lora.use_dora cannot be combined with the partial LoRA of XComposer's linear layers",
            why="DoRA scales the whole layer in one mode of PEFT and the weight alone in another; with weights that "
            "act on image tokens only, training, evaluation and the merged model would differ.",
            fix="Set lora.use_dora: false.",
        )
    return TrainableSelection(rules=tuple(recipe.rules))
