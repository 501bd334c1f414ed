"""The LoRA that Monkey carries itself: parameters of the base model, not PEFT's."""

from __future__ import annotations

import torch
from torch import nn

from vlm_lora_plugin.models import to_weight_dtype

# Upstream hard-codes the ranks: monkey_model/visual.py and modeling_qwen_nvdia3090.py.
ATTENTION_RANK = 16
MLP_RANK = 32
LANGUAGE_RANK = 32


class LoraAdapter(nn.Module):
    """Adds ``lora_b(lora_scale * lora_a(dropout(x)))``; the scale is a trained parameter of shape ``[1]``."""

    def __init__(self, in_features: int, out_features: int, r: int, dropout: float) -> None:
        super().__init__()
        self.lora_scale = nn.Parameter(torch.ones(1))
        self.lora_a = nn.Linear(in_features, r, bias=False)
        self.lora_b = nn.Linear(r, out_features, bias=False)
        self.lora_dropout = nn.Dropout(dropout)

    def forward(self, x: torch.Tensor, base: torch.Tensor) -> torch.Tensor:
        """Return ``base`` [..., out_features] plus the update of ``x`` [..., in_features], in the dtype of ``base``.

        The scale is applied between the two projections, where it costs least memory.
        """
        low = self.lora_a(to_weight_dtype(self.lora_dropout(x), self.lora_a.weight)) * self.lora_scale
        update: torch.Tensor = self.lora_b(low)
        return base + update.to(base.dtype)
