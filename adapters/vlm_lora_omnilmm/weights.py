"""Builds an OmniLMM from a folder in the published layout."""

from __future__ import annotations

from vlm_lora_omnilmm.configuration import OmniLMMConfig, TowerSettings
from vlm_lora_omnilmm.modeling import OmniLMMForCausalLM
from vlm_lora_omnilmm.tokenization import resolve_image_ids
from vlm_lora_plugin.contract import LoadRequest
from vlm_lora_plugin.models import config_of, load_model_of, read_config


def load_model(request: LoadRequest) -> OmniLMMForCausalLM:
    """Build the model of a folder, in eval mode; with device ``"meta"`` no weight is read.

    Raises:
        ModelError: The config is impossible, or does not fit the tokenizer.
        WeightsError: Tensors are missing, extra or of another shape, or a file is broken.
    """
    return load_model_of(OmniLMMForCausalLM, load_config(request), request)


def load_config(request: LoadRequest) -> OmniLMMConfig:
    """Read a folder's config; its tokenizer, where there is one, tells the ids of the image tokens.

    Raises:
        ModelError: The config is impossible, or does not fit the tokenizer.
    """
    folder = request.folder
    document = {key: value for key, value in read_config(folder).items() if key not in ("architectures", "model_type")}
    return resolve_image_ids(config_of(OmniLMMConfig, document, folder, {"tower": TowerSettings}), folder)
