"""An OmniLMM of less than a million parameters, for tests, the demo and planning."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vlm_lora_omnilmm.configuration import OmniLMMConfig
from vlm_lora_omnilmm.modeling import OmniLMMForCausalLM
from vlm_lora_omnilmm.prompt import SYSTEM_PROMPT
from vlm_lora_omnilmm.tokenization import image_ids, tiny_tokenizer
from vlm_lora_plugin.models import WIDE_RANGE, folder_writer, random_model

TINY_TOWER: dict[str, Any] = {
    "image_size": 32,
    "patch_size": 8,
    "embed_dim": 32,
    "depth": 3,
    "num_heads": 2,
    "mlp_ratio": 2.0,
}

TINY_CONFIG: dict[str, Any] = {
    "hidden_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 256,
    "max_position_embeddings": 512,
    "rms_norm_eps": 1e-5,
    "num_query": 4,
    "image_size": 32,
}

# What the prompt is made of, so that a tiny model's rows are short.
WORDS = [SYSTEM_PROMPT, "<|system|> <|user|> <|assistant|>", "Which digit?", *map(str, range(10))]


def tiny_config(**overrides: Any) -> OmniLMMConfig:
    """Return the configuration of a tiny model.

    Args:
        **overrides: Config keys that replace the tiny ones; ``tower`` is merged key by key.
    """
    tokenizer = tiny_tokenizer(WORDS)
    patch, start, end = image_ids(tokenizer)
    ids = {"im_patch_token": patch, "im_start_token": start, "im_end_token": end}
    tower = {**TINY_TOWER, **overrides.pop("tower", {})}
    return OmniLMMConfig(**{**TINY_CONFIG, "vocab_size": len(tokenizer), **ids, **overrides, "tower": tower})


def tiny_model(*, seed: int = 0, **overrides: Any) -> OmniLMMForCausalLM:
    """Return a tiny model with random weights that depend on ``seed`` alone, in eval mode, fp32 on the CPU."""
    return random_model(OmniLMMForCausalLM, tiny_config(**overrides), seed)


write_tiny_folder = folder_writer(tiny_model, lambda folder: tiny_tokenizer(WORDS).save_pretrained(folder))
"""Write a loadable folder of a tiny model; takes the folder and :func:`tiny_model`'s arguments."""


DEMO_OVERRIDES: dict[str, Any] = {"optimizer": {"learning_rate": 3e-3}, "training": {"num_train_epochs": 6}}
"""The recipe's keys with which the demo learns digits within six epochs; measured."""


def write_demo_folder(folder: str | Path) -> Mapping[str, Any]:
    """Write the model that the demo starts from: random weights that LoRA, resampler and embeddings can steer.

    The tower is frozen and knows nothing, so that it sees the picture as one patch: what one random layer makes of
    that can be told apart by what learns behind it.

    Returns:
        The recipe's keys with which the demo learns digits.
    """
    tower = {"embed_dim": 128, "num_heads": 4, "depth": 2, "patch_size": 32}
    write_tiny_folder(folder, num_hidden_layers=1, initializer_range=WIDE_RANGE, num_query=1, tower=tower)
    return DEMO_OVERRIDES
