"""What makes Monkey's forward pass leaner with the same result."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

import torch

from vlm_lora_monkey.modeling import MonkeyForCausalLM, MonkeyModel
from vlm_lora_plugin.patches import keep_text_only_trainable, refuse_unknown_model

if TYPE_CHECKING:
    from torch import nn

    from vlm_lora_plugin.contract import Patch
    from vlm_lora_plugin.recipe import Recipe


def patches(model: nn.Module, recipe: Recipe) -> tuple[Patch, ...]:
    """Return the patches that a recipe asks for, in the order in which they are applied.

    Raises:
        ModelError: The model is not of this package, so its forward pass is unknown.
    """
    refuse_unknown_model(model, MonkeyForCausalLM)
    text_only = keep_text_only_trainable("transformer", ["transformer.visual"], look=_look_at_grey)
    return (text_only,)


def _look_at_grey(trunk: nn.Module, embeds: torch.Tensor) -> torch.Tensor:
    """Return the tokens of an image whose pixels are all the mean of the published normalisation."""
    visual = cast(MonkeyModel, trunk).visual
    size = visual.settings.image_size
    return visual.encode(torch.zeros(1, 3, size, size, device=embeds.device))
