"""InternLM2 with partial LoRA, XComposer's language model: its positions, its block.

Nothing here keeps state between calls and there are no buffers: positions are computed in every forward. The
rotary tables of upstream are buffers that no checkpoint holds, and current versions of transformers leave
them uninitialised.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import nn
from transformers.activations import ACT2FN
from transformers.cache_utils import Cache
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.llama.modeling_llama import eager_attention_forward

from vlm_lora_plugin.models import RMSNorm, Rotary, apply_rotary, rotary_tables
from vlm_lora_xcomposer.configuration import XComposerConfig
from vlm_lora_xcomposer.lora import PLoraLinear


def rotary_of(position_ids: torch.Tensor, config: XComposerConfig, length: int) -> Rotary:
    """Return cosine and sine, each ``[B, 1, T, head_dim]`` fp32, for positions ``[B, T]``.

    Args:
        position_ids: Integers.
        config: Gives ``rope_theta`` and ``rope_scaling``: ``linear`` divides the positions, ``dynamic``
            stretches the base beyond ``max_position_embeddings`` (upstream: modeling_internlm2.py).
        length: Tokens of the longest row, cached ones and padding included; what ``dynamic`` goes by, for every
            row of a batch, as upstream's padded batches do. 4KHD's published config scales none.
    """
    dim = config.hidden_size // config.num_attention_heads
    scaling = config.rope_scaling or {"type": "linear", "factor": 1.0}
    base, positions, factor = float(config.rope_theta), position_ids.float(), float(scaling["factor"])
    if scaling["type"] == "linear":
        positions = positions / factor
    elif length > config.max_position_embeddings:
        base *= (factor * length / config.max_position_embeddings - (factor - 1)) ** (dim / (dim - 2))
    return rotary_tables(positions, dim, base)


class XComposerAttention(nn.Module):
    """Causal self-attention with grouped keys and values; ``wqkv`` holds, group by group, queries, key, value."""

    is_causal = True

    def __init__(self, config: XComposerConfig, layer_idx: int) -> None:
        super().__init__()
        self.config = config
        self.layer_idx = layer_idx
        self.groups = config.num_key_value_heads
        self.num_key_value_groups = config.num_attention_heads // self.groups  # the library reads this name
        self.head_dim = config.hidden_size // config.num_attention_heads
        fused = (config.num_attention_heads + 2 * self.groups) * self.head_dim
        self.wqkv = PLoraLinear(config.hidden_size, fused, config.plora_of("wqkv"), bias=config.bias)
        self.wo = PLoraLinear(config.hidden_size, config.hidden_size, config.plora_of("wo"), bias=config.bias)

    def forward(
        self,
        x: torch.Tensor,
        rotary: Rotary,
        image_mask: torch.Tensor | None,
        mask: torch.Tensor | None,
        past_key_values: Cache | None,
    ) -> torch.Tensor:
        """Attend over ``x`` [B, T, C] and what the cache holds; see :class:`XComposerBlock`."""
        batch, length, _ = x.shape
        qkv = self.wqkv(x, image_mask=image_mask)
        qkv = qkv.view(batch, length, self.groups, self.num_key_value_groups + 2, self.head_dim)
        query = qkv[..., :-2, :].flatten(2, 3).transpose(1, 2)
        key, value = qkv[..., -2, :].transpose(1, 2), qkv[..., -1, :].transpose(1, 2)
        query, key = apply_rotary(query, rotary), apply_rotary(key, rotary)
        if past_key_values is not None:
            key, value = past_key_values.update(key, value, self.layer_idx)
        attend = ALL_ATTENTION_FUNCTIONS.get_interface(self.config._attn_implementation, eager_attention_forward)
        context, _ = attend(self, query, key, value, mask, dropout=0.0, scaling=self.head_dim**-0.5)
        return cast(torch.Tensor, self.wo(context.reshape(batch, length, -1), image_mask=image_mask))


class XComposerMLP(nn.Module):
    """``w2(act(w1(x)) * w3(x))``."""

    def __init__(self, config: XComposerConfig) -> None:
        super().__init__()
        hidden, inner = config.hidden_size, config.intermediate_size
        self.w1 = PLoraLinear(hidden, inner, config.plora_of("w1"))
        self.w3 = PLoraLinear(hidden, inner, config.plora_of("w3"))
        self.w2 = PLoraLinear(inner, hidden, config.plora_of("w2"))
        self.act_fn = ACT2FN[config.hidden_act]

    def forward(self, x: torch.Tensor, image_mask: torch.Tensor | None) -> torch.Tensor:
        """Map ``[B, T, C]`` to ``[B, T, C]``."""
        gated = self.act_fn(self.w1(x, image_mask=image_mask)) * self.w3(x, image_mask=image_mask)
        return cast(torch.Tensor, self.w2(gated, image_mask=image_mask))


class XComposerBlock(GradientCheckpointingLayer):
    """One transformer layer of the language model."""

    def __init__(self, config: XComposerConfig, layer_idx: int) -> None:
        super().__init__()
        self.attention = XComposerAttention(config, layer_idx)
        self.feed_forward = XComposerMLP(config)
        self.attention_norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.ffn_norm = RMSNorm(config.hidden_size, config.rms_norm_eps)

    def forward(
        self,
        x: torch.Tensor,
        rotary: Rotary,
        image_mask: torch.Tensor | None = None,
        mask: torch.Tensor | None = None,
        past_key_values: Cache | None = None,
    ) -> torch.Tensor:
        """Return the hidden states after this layer.

        Args:
            x: ``[B, T, C]``.
            rotary: Tables of :func:`rotary_of` for these T positions.
            image_mask: ``[B, T, 1]`` bool, true at image tokens; None where there are none.
            mask: What the attention in use takes, as transformers' ``create_causal_mask`` makes it.
            past_key_values: Cache that keys and values are appended to.
        """
        x = x + self.attention(self.attention_norm(x), rotary, image_mask, mask, past_key_values)
        out: torch.Tensor = x + self.feed_forward(self.ffn_norm(x), image_mask)
        return out
