"""What a model folder says about itself. Nothing here imports torch, and no code from the folder is run."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vlm_lora_plugin.errors import ModelError
from vlm_lora_plugin.models import read_config

MODEL_TYPE = "monkey"
QWEN_VL_MODEL_TYPE = "qwen"  # shared with the text-only Qwen, which has no `visual`
QWEN_VL_WINDOWS_PER_SIDE = 2
QWEN_VL_LORA_SETS = 4
TEXT_MONKEY = "TextMonkey"  # has other parts behind the tower

COMMON = "default"
LLM_LORA = "llm_lora"
VARIANTS = (COMMON, LLM_LORA)
"""Without and with LoRA inside the language model; the published ``config.json`` is the same for both."""

_VISUAL_KEYS = {"image_size", "patch_size", "width", "layers", "heads", "output_dim", "image_start_id"}


def recognises(folder: Path) -> bool:
    """Return whether a folder holds a Monkey, or a Qwen-VL to start one from."""
    try:
        document = read_config(folder)
    except ModelError:
        return False
    visual, model_type = document.get("visual"), document.get("model_type")
    if model_type == QWEN_VL_MODEL_TYPE and not (isinstance(visual, Mapping) and visual.keys() >= _VISUAL_KEYS):
        return False
    return model_type in (MODEL_TYPE, QWEN_VL_MODEL_TYPE) and TEXT_MONKEY not in str(document.get("architectures"))


def monkey_document(document: Mapping[str, Any]) -> dict[str, Any]:
    """Return a config's content as a Monkey's, without what names code or classes.

    A Qwen-VL sees one image of one window; as the base of a Monkey it gets twice that side and one LoRA set
    per window, as upstream's training script does with its own config.
    """
    monkey = {key: value for key, value in document.items() if key not in ("auto_map", "architectures", "model_type")}
    visual = monkey.get("visual")
    if not isinstance(visual, Mapping):
        return monkey  # whoever makes a config of it says so
    visual = dict(visual)
    if document.get("model_type") == QWEN_VL_MODEL_TYPE and "lora_repeat_num" not in visual:
        visual["window_size"] = visual["image_size"]
        visual["image_size"] = visual["window_size"] * QWEN_VL_WINDOWS_PER_SIDE
        visual["lora_repeat_num"] = QWEN_VL_LORA_SETS
    monkey["visual"] = visual
    return monkey
