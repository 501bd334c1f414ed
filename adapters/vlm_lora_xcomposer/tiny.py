"""An XComposer of a few hundred thousand parameters, for tests, the demo and planning."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from vlm_lora_plugin.models import WIDE_RANGE, folder_writer, random_model
from vlm_lora_xcomposer.configuration import XComposerConfig
from vlm_lora_xcomposer.modeling import XComposerForCausalLM
from vlm_lora_xcomposer.tokenization import write_tiny_vocabulary
from vlm_lora_xcomposer.variants import XCOMPOSER2_4KHD

TINY_VISION: dict[str, Any] = {
    "image_size": 32,
    "patch_size": 8,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
}

TINY_PLORA: dict[str, Any] = {"wqkv": [4, 8], "other": [8, 8], "dropout": 0.0}

TINY_CONFIG: dict[str, Any] = {
    "vocab_size": 501,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 1024,
}


def tiny_config(variant: str = XCOMPOSER2_4KHD, **overrides: Any) -> XComposerConfig:
    """Return the configuration of a tiny model, partial LoRA's dropout off.

    Args:
        variant: One of :data:`~vlm_lora_xcomposer.variants.VARIANTS`.
        **overrides: Config keys that replace the tiny ones; ``vision`` and ``plora`` are merged key by key.
    """
    vision = {**TINY_VISION, **overrides.pop("vision", {})}
    plora = {**TINY_PLORA, **overrides.pop("plora", {})}
    return XComposerConfig(**{**TINY_CONFIG, **overrides, "variant": variant, "vision": vision, "plora": plora})


def tiny_model(variant: str = XCOMPOSER2_4KHD, *, seed: int = 0, **overrides: Any) -> XComposerForCausalLM:
    """Return a tiny model with random weights that depend on ``seed`` alone, in eval mode, fp32 on the CPU."""
    return random_model(XComposerForCausalLM, tiny_config(variant, **overrides), seed)


write_tiny_folder = folder_writer(tiny_model, write_tiny_vocabulary)
"""Write a loadable folder of a tiny model; takes the folder and :func:`tiny_model`'s arguments."""


def write_demo_folder(folder: str | Path) -> None:
    """Write the model that the demo starts from: random weights that LoRA alone can steer."""
    write_tiny_folder(folder, hidden_size=128, initializer_range=WIDE_RANGE, hd_num=1)
