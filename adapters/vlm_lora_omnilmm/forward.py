"""What makes OmniLMM's forward pass leaner with the same result."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

import torch

from vlm_lora_omnilmm.modeling import OmniLMMForCausalLM, OmniLMMModel
from vlm_lora_plugin.patches import keep_text_only_trainable, refuse_unknown_model

if TYPE_CHECKING:
    from torch import nn

    from vlm_lora_plugin.contract import Patch
    from vlm_lora_plugin.recipe import Recipe


def patches(model: nn.Module, recipe: Recipe) -> tuple[Patch, ...]:
    """Return the patches that a recipe asks for, in the order in which they are applied.

    That the images of a batch go through the tower together, and a frozen tower leaves no graph, needs no patch:
    the plain forward does so.

    Raises:
        ModelError: The model is not of this package, so its forward pass is unknown.
    """
    refuse_unknown_model(model, OmniLMMForCausalLM)
    text_only = keep_text_only_trainable("model", ["model.vision_tower", "model.resampler"], look=_look_at_grey)
    return (text_only,)


def _look_at_grey(trunk: nn.Module, embeds: torch.Tensor) -> torch.Tensor:
    """Return the tokens of an image whose pixels are all the mean of the published normalisation."""
    inner = cast(OmniLMMModel, trunk)
    size = inner.config.image_size
    return inner.encode_images(torch.zeros(1, 3, size, size, device=embeds.device))
