"""What makes Monkey's forward pass leaner with the same result."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vlm_lora_monkey.adapter import COMPONENTS
from vlm_lora_monkey.modeling import MonkeyForCausalLM
from vlm_lora_plugin.errors import ModelError
from vlm_lora_plugin.forward.answer_only import answer_only_logits
from vlm_lora_plugin.forward.checkpointing import checkpoint_blocks
from vlm_lora_plugin.forward.text_only import keep_text_only_trainable

if TYPE_CHECKING:
    from torch import nn

    from vlm_lora_plugin.recipe import Recipe
    from vlm_lora_plugin.types import Patch


def patches(model: nn.Module, recipe: Recipe) -> tuple[Patch, ...]:
    """Return the patches that a recipe asks for, in the order in which they are applied.

    Raises:
        ModelError: The model is not of this package, so its forward pass is unknown.
    """
    if not isinstance(model, MonkeyForCausalLM):
        raise ModelError(
            f"The forward pass of this {type(model).__module__}.{type(model).__name__} is not known here",
            fix="Load the model with vlm_lora_plugin.load(folder).",
        )
    checkpointed = [
        checkpoint_blocks(component) for component in COMPONENTS if recipe.gradient_checkpointing.get(component.name)
    ]
    answer_only = [answer_only_logits()] if recipe.answer_only_loss else []
    return (keep_text_only_trainable("transformer", ["transformer.visual"]), *checkpointed, *answer_only)
