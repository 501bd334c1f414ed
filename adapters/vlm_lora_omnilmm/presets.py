"""OmniLMM's recipes.

OmniLMM-12B has no training script upstream. Sets and numbers are those of the repository's MiniCPM-V scripts
(``finetune/finetune.py``, ``finetune_lora.sh``), component by component: LoRA r 64 on the attention's projections,
the resampler and the embeddings in full, the vision tower in full or frozen (``tune_vision``). They have one rate,
1e-6, for everything; LoRA, which starts from zero, learns at a hundred times that here.
"""

from __future__ import annotations

from typing import Any

_DEFAULTS: dict[str, Any] = {
    "lora": {"r": 64, "lora_alpha": 64, "lora_dropout": 0.05},
    "optimizer": {
        "learning_rate": {"default": 1e-6, "lora": 1e-4},
        "weight_decay": {"default": 0.1},
        "adam_beta2": 0.95,
        "lr_scheduler_type": "cosine",
        "warmup_ratio": 0.01,
    },
    "training": {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 16, "num_train_epochs": 1},
    "gradient_checkpointing": {"vision": False, "language": True},
    "answer_only_loss": True,
    "data": {"max_length": 2048},
}

_LORA = {"language": "lora", "aligner": "full", "embeddings": "full"}

PRESETS: dict[str, dict[str, Any]] = {
    "lora": {**_DEFAULTS, "components": _LORA},
    "lora-text": {**_DEFAULTS, "components": {"language": "lora"}},
    "lora+vision": {
        **_DEFAULTS,
        "components": {**_LORA, "vision": "full"},
        "gradient_checkpointing": {"vision": True, "language": True},
    },
}

DEFAULT_PRESET = "lora"
