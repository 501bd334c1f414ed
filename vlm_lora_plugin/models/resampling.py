"""Cross-attention pools with fixed two-dimensional positions, as first in Qwen-VL; one class for all families."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F
from transformers import initialization as init

from vlm_lora_plugin.models.dtypes import to_weight_dtype

NORM_EPS = 1e-6


class PoolAttention(nn.Module):
    """Cross-attention with the parameters of ``nn.MultiheadAttention``.

    Unlike there, ``out_proj`` is a linear layer that is really called, so that LoRA on it is alive.
    """

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.in_proj_weight = nn.Parameter(torch.empty(3 * dim, dim))
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * dim))
        self.out_proj = nn.Linear(dim, dim)

    def forward(self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        """Attend from ``query`` [N, Q, dim] over ``key`` and ``value`` [N, L, dim]; returns [N, Q, dim]."""
        weights, biases = self.in_proj_weight.chunk(3), self.in_proj_bias.chunk(3)
        query, key, value = (
            F.linear(x, weight, bias).view(*x.shape[:2], self.num_heads, -1).transpose(1, 2)
            for x, weight, bias in zip((query, key, value), weights, biases, strict=True)
        )
        context = F.scaled_dot_product_attention(query, key, value)
        out: torch.Tensor = self.out_proj(context.transpose(1, 2).flatten(2))
        return out

    def init_own_weights(self) -> None:
        """Initialise what was not loaded."""
        init.xavier_uniform_(self.in_proj_weight)
        init.zeros_(self.in_proj_bias)


class Resampler(nn.Module):
    """Condenses the patches of an image, or of a part of it, into a few tokens by one cross-attention.

    Args:
        queries: Tokens that it makes; a square number.
        dim: Channels of a token.
        kv_dim: Channels of a patch.
        num_heads: Attention heads.
    """

    def __init__(self, *, queries: int, dim: int, kv_dim: int, num_heads: int) -> None:
        super().__init__()
        table = sincos_table(queries, dim).to(torch.get_default_dtype())
        self.pos_embed = nn.Parameter(table, requires_grad=False)
        self.query = nn.Parameter(torch.empty(queries, dim))
        self.kv_proj = nn.Linear(kv_dim, dim, bias=False) if kv_dim != dim else nn.Identity()
        self.attn = PoolAttention(dim, num_heads)
        self.ln_q = nn.LayerNorm(dim, eps=NORM_EPS)
        self.ln_kv = nn.LayerNorm(dim, eps=NORM_EPS)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map patches ``[N, L, kv_dim]`` to tokens ``[N, queries, dim]``."""
        patches = self.ln_kv(self.kv_proj(to_weight_dtype(x, self.attn.in_proj_weight)))
        query = (self.ln_q(self.query) + self.pos_embed).expand(len(x), -1, -1)
        out: torch.Tensor = self.attn(query, patches + stretch_grid(self.pos_embed, patches.shape[1]), patches)
        return out

    def init_own_weights(self) -> None:
        """Initialise what was not loaded."""
        init.trunc_normal_(self.query, std=0.02)
        init.copy_(self.pos_embed, sincos_table(*self.pos_embed.shape))


def stretch_grid(table: torch.Tensor, length: int) -> torch.Tensor:
    """Resize a square grid of positions ``[M, C]`` to ``[length, C]`` bicubically, in fp32."""
    if len(table) == length:
        return table
    source, target = round(len(table) ** 0.5), round(length**0.5)
    grid = table.to(torch.promote_types(table.dtype, torch.float32)).view(1, source, source, -1).permute(0, 3, 1, 2)
    resized = F.interpolate(grid, size=(target, target), mode="bicubic", align_corners=False)
    return resized.permute(0, 2, 3, 1).flatten(0, 2).to(table.dtype)


def sincos_table(positions: int, dim: int) -> torch.Tensor:
    """Return the fixed table ``[positions, dim]`` fp32: sines and cosines of the column, then of the row."""
    side = round(positions**0.5)
    omega = 1.0 / 10000 ** (torch.arange(dim // 4, dtype=torch.float64) / (dim / 4))
    row, column = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
    halves = [torch.outer(axis.flatten().double(), omega) for axis in (column, row)]
    return torch.cat([wave for half in halves for wave in (half.sin(), half.cos())], dim=1).float()


@torch.no_grad()
def init_own_weights(module: nn.Module) -> None:
    """Initialise a module's own tensors that were not loaded, if it has a method ``init_own_weights``; else nothing.

    A model's ``_init_weights`` calls it for every module.
    """
    own = getattr(module, "init_own_weights", None)
    if callable(own):
        own()


def freeze_tables(model: nn.Module) -> None:
    """Freeze the computed tables of a model's resamplers."""
    for module in model.modules():
        if isinstance(module, Resampler):
            module.pos_embed.requires_grad_(False)
