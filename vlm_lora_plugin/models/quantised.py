"""Folders whose weights are quantised, told by what their makers leave in them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vlm_lora_plugin.errors import ModelError

QUANTISED_FILES = ("quantize_config.json", "quant_config.json")  # AutoGPTQ's and AutoAWQ's


def refuse_quantised(folder: Path, config: Mapping[str, Any]) -> None:
    """Raise where a folder holds quantised weights, which a family's own loader would take for plain ones.

    Args:
        folder: The model folder.
        config: What its ``config.json`` holds.

    Raises:
        ModelError: ``config.json`` has a ``quantization_config``, or a quantiser's own file lies beside it.
    """
    signs = ["quantization_config in config.json"] if config.get("quantization_config") else []
    signs += [name for name in QUANTISED_FILES if (folder / name).is_file()]
    if signs:
        raise ModelError(
            f"{folder} holds a quantised model ({', '.join(signs)})",
            why="The loader reads 16- and 32-bit weights alone; packed ones (AWQ, GPTQ, bnb) it would misread.",
            fix="Download the 16-bit model it was made from: internlm/internlm-xcomposer2d5-7b, not ...-7b-4bit.",
        )
