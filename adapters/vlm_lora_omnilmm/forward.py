"""What makes OmniLMM's forward pass leaner with the same result."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vlm_lora_omnilmm.modeling import OmniLMMForCausalLM
from vlm_lora_plugin.patches import refuse_unknown_model

if TYPE_CHECKING:
    from torch import nn

    from vlm_lora_plugin.contract import Patch


def patches(model: nn.Module) -> tuple[Patch, ...]:
    """Return what makes the forward pass leaner, in the order in which it is applied.

    None beside the core's: that the images of a batch go through the tower together, and a frozen tower leaves no
    graph, the plain forward sees to.

    Raises:
        ModelError: The model is not of this package, so its forward pass is unknown.
    """
    refuse_unknown_model(model, OmniLMMForCausalLM)
    return ()
