"""Qwen-7B, Monkey's language model: its positions, its block.

Nothing here keeps state between calls and there are no buffers: positions are computed in every forward, so
that a training step after an evaluation is the same as one before it.
"""

from __future__ import annotations

import math

import torch
from torch import nn
from torch.nn import functional as F
from transformers.cache_utils import Cache
from transformers.modeling_layers import GradientCheckpointingLayer

from vlm_lora_monkey.configuration import MonkeyConfig
from vlm_lora_monkey.lora import LANGUAGE_RANK, LoraAdapter
from vlm_lora_plugin.models import RMSNorm, Rotary, apply_rotary, rotary_tables


def ntk_factor(length: int, trained_length: int) -> float:
    """Return by how much the rotary base is stretched for a sequence of ``length`` tokens.

    1 up to ``trained_length``, 3 up to twice that, 7 up to four times (upstream: modeling_qwen.py).
    """
    doublings = math.ceil(math.log2(length / trained_length) + 1)
    return max(2.0**doublings - 1, 1.0)


def rotary_of(position_ids: torch.Tensor, dim: int, base: float, factor: float) -> Rotary:
    """Return the tables for positions ``[B, T]``, the base stretched by :func:`ntk_factor`'s factor."""
    return rotary_tables(position_ids, dim, base * factor ** (dim / (dim - 2)))


def log_n_scale(position_ids: torch.Tensor, trained_length: int) -> torch.Tensor:
    """Return the query scale ``[B, 1, T, 1]`` fp32: log of the position to the base ``trained_length``, at least 1."""
    logs = torch.log(position_ids.double() + 1) / math.log(trained_length)
    return logs.clamp(min=1.0).float()[:, None, :, None]


def with_lora(linear: nn.Module, lora: LoraAdapter | None, x: torch.Tensor) -> torch.Tensor:
    """Return ``linear(x)``, plus the LoRA update where there is one."""
    out: torch.Tensor = linear(x)
    return out if lora is None else lora(x, out)


class MonkeyAttention(nn.Module):
    """Causal self-attention with fused query, key and value."""

    def __init__(self, config: MonkeyConfig, layer_idx: int) -> None:
        super().__init__()
        hidden = config.hidden_size
        self.layer_idx = layer_idx
        self.num_heads = config.num_attention_heads
        self.dropout = config.attn_dropout_prob
        self.c_attn = nn.Linear(hidden, 3 * hidden)
        self.c_proj = nn.Linear(hidden, hidden, bias=not config.no_bias)
        self.c_attn_lora = _language_lora(config, hidden, 3 * hidden)
        self.c_proj_lora = _language_lora(config, hidden, hidden)

    def forward(
        self,
        x: torch.Tensor,
        rotary: Rotary,
        log_n: torch.Tensor | None,
        mask: torch.Tensor | None,
        past_key_values: Cache | None,
    ) -> torch.Tensor:
        """Attend over ``x`` [B, T, C] and what the cache holds; see :class:`MonkeyBlock`."""
        batch, length, _ = x.shape
        qkv = with_lora(self.c_attn, self.c_attn_lora, x)
        query, key, value = (
            part.view(batch, length, self.num_heads, -1).transpose(1, 2) for part in qkv.chunk(3, dim=-1)
        )
        query, key = apply_rotary(query, rotary), apply_rotary(key, rotary)
        if past_key_values is not None:
            key, value = past_key_values.update(key, value, self.layer_idx)
        if log_n is not None:
            query = query * log_n.to(query.dtype)
        context = F.scaled_dot_product_attention(
            query,
            key,
            value,
            attn_mask=mask,
            dropout_p=self.dropout if self.training else 0.0,
            is_causal=mask is None and length > 1,
        )
        return with_lora(self.c_proj, self.c_proj_lora, context.transpose(1, 2).reshape(batch, length, -1))


class MonkeyMLP(nn.Module):
    """``c_proj(w1(x) * silu(w2(x)))``; each branch has half of the config's ``intermediate_size``."""

    def __init__(self, config: MonkeyConfig) -> None:
        super().__init__()
        hidden, branch, bias = config.hidden_size, config.intermediate_size // 2, not config.no_bias
        self.w1 = nn.Linear(hidden, branch, bias=bias)
        self.w2 = nn.Linear(hidden, branch, bias=bias)
        self.c_proj = nn.Linear(branch, hidden, bias=bias)
        self.w1_lora = _language_lora(config, hidden, branch)
        self.w2_lora = _language_lora(config, hidden, branch)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map ``[B, T, C]`` to ``[B, T, C]``."""
        gated = with_lora(self.w1, self.w1_lora, x) * F.silu(with_lora(self.w2, self.w2_lora, x))
        out: torch.Tensor = self.c_proj(gated)
        return out


class MonkeyBlock(GradientCheckpointingLayer):
    """One transformer layer of the language model."""

    def __init__(self, config: MonkeyConfig, layer_idx: int) -> None:
        super().__init__()
        self.ln_1 = RMSNorm(config.hidden_size, config.layer_norm_epsilon)
        self.attn = MonkeyAttention(config, layer_idx)
        self.ln_2 = RMSNorm(config.hidden_size, config.layer_norm_epsilon)
        self.mlp = MonkeyMLP(config)

    def forward(
        self,
        x: torch.Tensor,
        rotary: Rotary,
        log_n: torch.Tensor | None = None,
        mask: torch.Tensor | None = None,
        past_key_values: Cache | None = None,
    ) -> torch.Tensor:
        """Return the hidden states after this layer.

        Args:
            x: ``[B, T, C]``.
            rotary: Tables of :func:`rotary_of` for these T positions.
            log_n: Scale of :func:`log_n_scale`, or None where the rule is off (in training).
            mask: ``[B, 1, T, S]``, True where a query may look; None is plain causal attention.
            past_key_values: Cache that keys and values are appended to.
        """
        x = x + self.attn(self.ln_1(x), rotary, log_n, mask, past_key_values)
        out: torch.Tensor = x + self.mlp(self.ln_2(x))
        return out


def _language_lora(config: MonkeyConfig, in_features: int, out_features: int) -> LoraAdapter | None:
    if not config.llm_lora:
        return None
    return LoraAdapter(in_features, out_features, LANGUAGE_RANK, config.vision.lora_dropout)
