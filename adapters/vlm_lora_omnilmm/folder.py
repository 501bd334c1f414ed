"""What a model folder says about itself. Nothing here imports torch, and no code from the folder is run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from vlm_lora_plugin.errors import ModelError

MODEL_TYPE = "omnilmm"


def read_config(folder: Path) -> dict[str, Any]:
    """Return the content of ``config.json``.

    Raises:
        ModelError: It is missing or no JSON object.
    """
    try:
        document = json.loads((folder / "config.json").read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError(f"{folder / 'config.json'} cannot be read: {error}") from None
    if not isinstance(document, dict):
        raise ModelError(f"{folder / 'config.json'} holds no JSON object")
    return document


def recognises(folder: Path) -> bool:
    """Return whether a folder holds an OmniLMM. Without ``mm_vision_tower`` upstream builds one that sees nothing."""
    try:
        document = read_config(folder)
    except ModelError:
        return False
    return document.get("model_type") == MODEL_TYPE and bool(document.get("mm_vision_tower"))
