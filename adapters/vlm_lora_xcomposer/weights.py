"""Builds an XComposer from a folder in the published layout."""

from __future__ import annotations

from vlm_lora_plugin.contract import LoadRequest
from vlm_lora_plugin.models import load_model_of
from vlm_lora_xcomposer.modeling import XComposerForCausalLM
from vlm_lora_xcomposer.shapes import load_config


def load_model(request: LoadRequest) -> XComposerForCausalLM:
    """Build the model of a folder, in eval mode; with device ``"meta"`` no weight is read.

    Raises:
        ModelError: The config is impossible, or is not a match for ``request.variant``.
        WeightsError: Tensors are missing, extra or of another shape, or a file is broken.
    """
    return load_model_of(XComposerForCausalLM, load_config(request), request)
