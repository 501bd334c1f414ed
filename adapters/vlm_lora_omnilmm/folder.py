"""What a model folder says about itself. Nothing here imports torch, and no code from the folder is run."""

from __future__ import annotations

from pathlib import Path

from vlm_lora_plugin.errors import ModelError
from vlm_lora_plugin.models import read_config

MODEL_TYPE = "omnilmm"


def recognises(folder: Path) -> bool:
    """Return whether a folder holds an OmniLMM. Without ``mm_vision_tower`` upstream builds one that sees nothing."""
    try:
        document = read_config(folder)
    except ModelError:
        return False
    return document.get("model_type") == MODEL_TYPE and bool(document.get("mm_vision_tower"))
