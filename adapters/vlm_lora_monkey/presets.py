"""Monkey's recipes, with upstream's trainable sets and defaults.

Sets: the freezing statements of ``finetune_multitask.py`` and the maintainer's snippet in upstream issue #64.
Numbers: ``finetune/finetune_ds_debug.sh``. Upstream has one rate, 1e-5, for everything; LoRA learns at ten
times that here. Memory errors that users report come from the vision tower, which upstream never checkpoints.
"""

from __future__ import annotations

from typing import Any

_DEFAULTS: dict[str, Any] = {
    "optimizer": {
        "learning_rate": {"default": 1e-5, "lora": 1e-4},
        "weight_decay": {"default": 0.1},
        "adam_beta2": 0.95,
        "lr_scheduler_type": "cosine",
        "warmup_ratio": 0.02,
    },
    "training": {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 16, "num_train_epochs": 1},
    "gradient_checkpointing": {"vision": True, "language": True},
    "data": {"max_length": 2048},
}

# Every LoRA that the model carries, in the 3090 variant the language model's too.
_EVERY_LORA = {"pattern": ".*lora.*", "means": "lora"}

# Upstream also trains names with `window_attention`; Monkey has none, so the pool carries that pattern.
_POOL_AND_WINDOW_ATTENTION = {
    "pattern": r"transformer\.visual\.attn_pool|.*window_attention.*",
    "means": "full",
}

_LANGUAGE = ("language", "embeddings", "head")

PRESETS: dict[str, dict[str, Any]] = {
    "lora": {
        **_DEFAULTS,
        "components": {"vision": "lora", "aligner": "full"},
        "rules": [_EVERY_LORA, _POOL_AND_WINDOW_ATTENTION],
    },
    "lora-only": {**_DEFAULTS, "components": {"vision": "lora"}, "rules": [_EVERY_LORA]},
    "lora+llm": {
        **_DEFAULTS,
        "components": {"vision": "lora", "aligner": "full", **dict.fromkeys(_LANGUAGE, "full")},
    },
    "lora+llm-lora": {
        **_DEFAULTS,
        "components": {"vision": "lora", "aligner": "full", "language": "lora"},
    },
}

DEFAULT_PRESET = "lora"
