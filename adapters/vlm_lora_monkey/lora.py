"""The LoRA that Monkey carries itself: parameters of the base model, not PEFT's."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import nn

from vlm_lora_plugin.models.dtypes import to_weight_dtype
from vlm_lora_plugin.selection.keyed_init import keyed_lora_down

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


def draw_lora(model: nn.Module, names: Iterable[str], seed: int) -> None:
    """Give LoRA parameters their starting values: a keyed random down projection, no update, scale one.

    Args:
        model: The model that has the parameters, in any dtype.
        names: Names of :class:`LoraAdapter` parameters.
        seed: The recipe's seed; see :mod:`vlm_lora_plugin.selection.keyed_init`.
    """
    with torch.no_grad():
        for name in names:
            parameter = model.get_parameter(name)
            if name.endswith(".lora_a.weight"):
                parameter.copy_(keyed_lora_down(name, parameter.shape, seed))
            elif name.endswith(".lora_b.weight"):
                parameter.zero_()
            else:
                parameter.fill_(1.0)
