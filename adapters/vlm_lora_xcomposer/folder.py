"""What a model folder says about itself. No code from the folder is run."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from vlm_lora_plugin.errors import ModelError
from vlm_lora_plugin.models import read_config, refuse_quantised
from vlm_lora_xcomposer.names import PLORA_NAME

MODEL_TYPE = "internlmxcomposer2"
INTERNLM2_MODEL_TYPE = "internlm2"  # shared with the text-only InternLM2, which has no partial LoRA

_CLASS_KEYS = ("architectures", "auto_map")
_MARK = "xcomposer2"
_OTHER_HEADS = ("reward",)  # InternLM-XComposer2.5-Reward scores an answer and writes none


def recognises(folder: Path) -> bool:
    """Return whether a folder holds an InternLM-XComposer 2, 2-4KHD or 2.5.

    Published configs give ``internlmxcomposer2`` or ``internlm2`` as their type. The latter is a plain
    InternLM2 too, so there the names of classes, or of tensors, must tell of an XComposer.
    """
    try:
        document = read_config(folder)
    except ModelError:
        return False
    classes = json.dumps([document.get(key) for key in _CLASS_KEYS]).lower()
    if any(head in classes for head in _OTHER_HEADS):
        return False
    model_type = document.get("model_type")
    if model_type == INTERNLM2_MODEL_TYPE:
        return _MARK in classes or _has_partial_lora(folder)
    return model_type == MODEL_TYPE


def _has_partial_lora(folder: Path) -> bool:
    from vlm_lora_plugin.models import has_weights, tensor_names

    return has_weights(folder) and any(re.fullmatch(PLORA_NAME, name) for name in tensor_names(folder))


def xcomposer_document(folder: Path) -> dict[str, Any]:
    """Return the content of a folder's config without what names code or classes.

    Raises:
        ModelError: ``config.json`` is missing or no JSON object, or the weights are quantised.
    """
    document = read_config(folder)
    refuse_quantised(folder, document)
    left_out = (*_CLASS_KEYS, "model_type")
    return {key: value for key, value in document.items() if key not in left_out}
