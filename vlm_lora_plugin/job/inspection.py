"""What a recipe would train in a model. Imports neither PEFT nor the Trainer, which take seconds."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from vlm_lora_plugin.planning.effect import effective_recipe
from vlm_lora_plugin.planning.plan import HardwarePlan, plan_hardware
from vlm_lora_plugin.reporting.summary import ModelSummary, summarise
from vlm_lora_plugin.selection.resolve import trace_selection

if TYPE_CHECKING:
    from torch import nn

    from vlm_lora_plugin.contract import Family
    from vlm_lora_plugin.planning.resolved import ResolvedRecipe
    from vlm_lora_plugin.selection.trace import SelectionTrace


@dataclass(frozen=True)
class Inspection:
    """What a recipe trains in a model.

    Attributes:
        summary: In numbers.
        selection: By name, with what became of each rule.
        recipe: The recipe, with who set each value.
        hardware: The recipe on its hardware; None where it names none.
    """

    summary: ModelSummary
    selection: SelectionTrace
    recipe: ResolvedRecipe
    hardware: HardwarePlan | None = None


def inspect_model(model: nn.Module, name: str, family: Family, recipe: ResolvedRecipe) -> Inspection:
    """Work out what a recipe trains in a model, which may be on the meta device.

    Args:
        model: The base model.
        name: What to call it, its folder usually.
        family: Whose model it is.
        recipe: The resolved recipe.

    Raises:
        RecipeError: A key that the user set would have no effect.
        SelectionError: The recipe does not fit the model.
    """
    selection = trace_selection(model, family, recipe)
    recipe = effective_recipe(recipe, model, family, selection.trainables)
    hardware = plan_hardware(recipe, family, model, selection.trainables) if recipe.hardware is not None else None
    return Inspection(summarise(model, name, family, recipe, selection.trainables), selection, recipe, hardware)
