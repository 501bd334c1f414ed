"""XComposer's recipes, with upstream's trainable sets and defaults.

Sets: the freezing statements of ``finetune.py``, the same for versions 2 and 2.5. Numbers: its defaults and
``finetune_lora.sh`` (LoRA), ``finetune.sh`` (full weights). Upstream's partial LoRA, weights of the published
model, is frozen wherever PEFT's LoRA learns.
"""

from __future__ import annotations

from typing import Any

from vlm_lora_xcomposer.names import SEPARATOR_NAME

_LANGUAGE = ("language", "embeddings", "head")

_DEFAULTS: dict[str, Any] = {
    "lora": {"r": 64, "lora_alpha": 64, "lora_dropout": 0.05},
    "optimizer": {
        "learning_rate": {"default": 1e-5, "lora": 5e-5},
        "weight_decay": {"default": 0.1},
        "adam_beta2": 0.95,
        "lr_scheduler_type": "cosine",
        "warmup_ratio": 0.01,
    },
    "training": {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 8, "num_train_epochs": 1},
    "gradient_checkpointing": {"vision": True, "language": True},
    "answer_only_loss": True,
    "data": {"max_length": 4096},
}

SEPARATORS_LEARN: dict[str, Any] = {"pattern": SEPARATOR_NAME, "means": "full"}
"""The rule by which the two separator vectors learn beside LoRA.

Upstream's LoRA trains them by accident (PEFT freezes what has no ``lora_`` in its name, and ``plora_glb_GN``
does) and then loses them: its adapter files cannot give them back.
"""

# Version 2 has no separators, and a pattern must match something; the last norm learns with `language` anyway.
_SEPARATORS_IF_ANY = {"pattern": rf"{SEPARATOR_NAME}|model\.norm", "means": "full"}

PRESETS: dict[str, dict[str, Any]] = {
    "lora": {**_DEFAULTS, "components": {"language": "lora"}},
    "lora-low-memory": {
        **_DEFAULTS,
        "lora": {"r": 8, "lora_alpha": 16, "lora_dropout": 0.05},
        "components": {"language": "lora"},
    },
    "lora+separators": {**_DEFAULTS, "components": {"language": "lora"}, "rules": [SEPARATORS_LEARN]},
    "lora+projector": {**_DEFAULTS, "components": {"language": "lora", "aligner": "full"}},
    "full-llm": {
        **_DEFAULTS,
        "components": dict.fromkeys(_LANGUAGE, "full"),
        "rules": [_SEPARATORS_IF_ANY],
    },
    "full": {**_DEFAULTS, "components": {"vision": "full", "aligner": "full", **dict.fromkeys(_LANGUAGE, "full")}},
}

DEFAULT_PRESET = "lora"
