"""Builds an OmniLMM from a folder in the published layout."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import GenerationConfig
from transformers.models.mistral.modeling_mistral import MistralRotaryEmbedding

from vlm_lora_omnilmm.configuration import OmniLMMConfig
from vlm_lora_omnilmm.folder import read_config
from vlm_lora_omnilmm.modeling import OmniLMMForCausalLM
from vlm_lora_omnilmm.tokenization import resolve_image_ids
from vlm_lora_plugin.models.weights import load_weights
from vlm_lora_plugin.types import LoadRequest

GENERATION_FILE = "generation_config.json"

# Buffers that older libraries saved. They follow from the config; the key's bias is always zero.
IGNORED_TENSORS = (r".*rotary_emb\.inv_freq", r".*attn\.k_bias")


def load_model(request: LoadRequest) -> OmniLMMForCausalLM:
    """Build the model of a folder, in eval mode; with device ``"meta"`` no weight is read.

    Raises:
        ModelError: The config is impossible, or does not fit the tokenizer.
        WeightsError: Tensors are missing, extra or of another shape, or a file is broken.
    """
    config = load_config(request.folder)
    dtype = request.dtype or (config.dtype if isinstance(config.dtype, torch.dtype) else torch.float32)
    config.dtype = dtype
    with torch.device("meta"):
        model = OmniLMMForCausalLM(config)
    model.eval()  # type: ignore[no-untyped-call]
    if (request.folder / GENERATION_FILE).is_file():
        model.generation_config = GenerationConfig.from_pretrained(request.folder)
    if request.device == "meta":
        model.to(dtype)  # type: ignore[arg-type]  # the library wraps it untyped
        return model
    # The only buffers of the model, and in no checkpoint.
    model.model.rotary_emb = MistralRotaryEmbedding(config).to(request.device)
    load_weights(model, request.folder, dtype=dtype, device=request.device, ignore=IGNORED_TENSORS)
    return model


def load_config(folder: Path) -> OmniLMMConfig:
    """Read a folder's config; its tokenizer, where there is one, tells the ids of the image tokens.

    Raises:
        ModelError: The config is impossible, or does not fit the tokenizer.
    """
    document = {key: value for key, value in read_config(folder).items() if key not in ("architectures", "model_type")}
    config = resolve_image_ids(OmniLMMConfig(**document), folder)
    config.name_or_path = str(folder)
    return config
