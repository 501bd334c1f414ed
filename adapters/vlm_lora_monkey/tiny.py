"""A Monkey of less than a million parameters, for tests, the demo and planning."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from vlm_lora_monkey.configuration import MonkeyConfig
from vlm_lora_monkey.modeling import MonkeyForCausalLM
from vlm_lora_monkey.tokenization import write_tiny_vocabulary
from vlm_lora_plugin.models import WIDE_RANGE, folder_writer, random_model

TINY_VISUAL: dict[str, Any] = {
    "image_size": 64,
    "window_size": 32,
    "patch_size": 8,
    "width": 32,
    "layers": 2,
    "heads": 2,
    "mlp_ratio": 2.0,
    "output_dim": 128,
    "image_start_id": 470,
    "n_queries": 4,
    "lora_repeat_num": 4,
}

TINY_CONFIG: dict[str, Any] = {
    "vocab_size": 480,
    "hidden_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "kv_channels": 32,
    "intermediate_size": 256,
    "seq_length": 512,
    "max_position_embeddings": 512,
}


def tiny_config(*, llm_lora: bool = False, **overrides: Any) -> MonkeyConfig:
    """Return the configuration of a tiny model.

    Args:
        llm_lora: The variant with LoRA in the language model.
        **overrides: Config keys that replace the tiny ones; ``visual`` is merged key by key.
    """
    visual = {**TINY_VISUAL, **overrides.pop("visual", {})}
    return MonkeyConfig(**{**TINY_CONFIG, **overrides, "llm_lora": llm_lora, "visual": visual})


def tiny_model(*, seed: int = 0, llm_lora: bool = False, **overrides: Any) -> MonkeyForCausalLM:
    """Return a tiny model with random weights that depend on ``seed`` alone, in eval mode, fp32 on the CPU."""
    return random_model(MonkeyForCausalLM, tiny_config(llm_lora=llm_lora, **overrides), seed)


write_tiny_folder = folder_writer(tiny_model, write_tiny_vocabulary)
"""Write a loadable folder of a tiny model; takes the folder and :func:`tiny_model`'s arguments."""


def write_demo_folder(folder: str | Path) -> None:
    """Write the model that the demo starts from: random weights that LoRA and the resampler alone can steer."""
    write_tiny_folder(
        folder,
        num_hidden_layers=1,
        intermediate_size=512,
        initializer_range=WIDE_RANGE,
        visual={"width": 64, "heads": 4},
    )
