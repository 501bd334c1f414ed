"""What the forward passes of all families do alike for a recipe."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from torch import nn

from vlm_lora_plugin.errors import ModelError
from vlm_lora_plugin.patches.answer_only import answer_only_logits
from vlm_lora_plugin.patches.checkpointing import checkpoint_blocks

if TYPE_CHECKING:
    from vlm_lora_plugin.contract import Patch
    from vlm_lora_plugin.recipe import Recipe
    from vlm_lora_plugin.vocabulary import Component


def refuse_unknown_model(model: nn.Module, model_class: type[nn.Module]) -> None:
    """Refuse a model whose forward pass is not the one that a family's patches were written for.

    Raises:
        ModelError: It is of another class.
    """
    if not isinstance(model, model_class):
        raise ModelError(
            f"The forward pass of this {type(model).__module__}.{type(model).__name__} is not known here",
            fix="Load the model with vlm_lora_plugin.load(folder).",
        )


def recipe_patches(recipe: Recipe, components: Iterable[Component], *, head: str = "lm_head") -> tuple[Patch, ...]:
    """Return the patches that a recipe asks for by name: checkpointing by component, and answer-only logits.

    Args:
        recipe: The resolved recipe.
        components: The family's.
        head: Name of the module that makes logits of hidden states.
    """
    checkpointed = [
        checkpoint_blocks(component) for component in components if recipe.gradient_checkpointing.get(component.name)
    ]
    return (*checkpointed, *([answer_only_logits(head)] if recipe.answer_only_loss else []))
