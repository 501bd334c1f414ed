"""Reversible changes of the forward pass, one file each.

Names are imported when they are used: importing this package does not import torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from vlm_lora_plugin.lazy import lazy_names

if TYPE_CHECKING:
    from vlm_lora_plugin.patches.answer_only import answer_only_logits
    from vlm_lora_plugin.patches.checkpointing import checkpoint_blocks
    from vlm_lora_plugin.patches.from_recipe import no_patches, refuse_unknown_model
    from vlm_lora_plugin.patches.image_text import text_only_batches
    from vlm_lora_plugin.patches.text_only import keep_text_only_trainable
    from vlm_lora_plugin.patches.wrapping import wrap_method

_LAZY = {
    "vlm_lora_plugin.patches.answer_only": ("answer_only_logits",),
    "vlm_lora_plugin.patches.checkpointing": ("checkpoint_blocks",),
    "vlm_lora_plugin.patches.from_recipe": ("no_patches", "refuse_unknown_model"),
    "vlm_lora_plugin.patches.image_text": ("text_only_batches",),
    "vlm_lora_plugin.patches.text_only": ("keep_text_only_trainable",),
    "vlm_lora_plugin.patches.wrapping": ("wrap_method",),
}

__all__ = [
    "answer_only_logits",
    "checkpoint_blocks",
    "keep_text_only_trainable",
    "no_patches",
    "refuse_unknown_model",
    "text_only_batches",
    "wrap_method",
]

if not TYPE_CHECKING:
    __getattr__ = lazy_names(__name__, _LAZY)
