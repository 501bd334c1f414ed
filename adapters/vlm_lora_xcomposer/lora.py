"""Partial LoRA: low-rank weights of the published model that act on image tokens alone.

They are not adapters in PEFT's sense: they came with the checkpoint, and PEFT's LoRA goes on top of them.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

from vlm_lora_plugin.models import to_weight_dtype
from vlm_lora_xcomposer.configuration import PLoraSettings


class LowRankProjection(nn.Module):
    """``x @ weight.T``. No ``nn.Linear``, so that neither PEFT's nor our ``all-linear`` puts LoRA on it."""

    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(out_features, in_features))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map ``[..., in_features]`` to ``[..., out_features]``."""
        return F.linear(to_weight_dtype(x, self.weight), self.weight)


class PLoraLinear(nn.Linear):
    """A linear layer with partial LoRA: ``W x``, plus ``scale * B A dropout(x)`` where ``x`` is an image token.

    PEFT takes it for the linear layer that it is, and its LoRA layer hands ``image_mask`` on to it.
    """

    def __init__(self, in_features: int, out_features: int, settings: PLoraSettings, bias: bool = False) -> None:
        super().__init__(in_features, out_features, bias=bias)
        self.scale = settings.scale
        self.Plora_A = LowRankProjection(in_features, settings.r)
        self.Plora_B = LowRankProjection(settings.r, out_features)
        self.plora_dropout = nn.Dropout(settings.dropout)

    def forward(self, input: torch.Tensor, image_mask: torch.Tensor | None = None) -> torch.Tensor:
        """Map ``[B, T, in_features]`` to ``[B, T, out_features]``.

        Args:
            input: The hidden states.
            image_mask: ``[B, T, 1]`` bool, true at image tokens; None where there are none. It is applied to the
                low-rank states of all tokens: selecting the image tokens would make the device wait in each of
                160 layers to learn how many there are, and they are most of the tokens.
        """
        out = super().forward(input)
        if image_mask is None:
            return out
        low = self.Plora_A(self.plora_dropout(input))
        update: torch.Tensor = self.Plora_B(low * (image_mask.to(low.dtype) * self.scale))
        return out + update.to(out.dtype)
