"""Parts of language models that several families share. None keeps state between calls or has a buffer."""

from __future__ import annotations

import torch
from torch import nn

Rotary = tuple[torch.Tensor, torch.Tensor]
"""Cosine and sine, each ``[B, 1, T, dim]`` fp32."""


class RMSNorm(nn.Module):
    """RMS norm, computed in fp32, scaled in the dtype of its input."""

    def __init__(self, dim: int, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(dim))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Normalise the last dimension."""
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        normed = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + self.eps)
        return normed.to(x.dtype) * self.weight


def rotary_tables(positions: torch.Tensor, dim: int, base: float) -> Rotary:
    """Return cosine and sine of ``positions`` [B, T] (any number type), for ``dim`` channels."""
    exponents = torch.arange(0, dim, 2, device=positions.device, dtype=torch.float32) / dim
    angles = positions[:, None, :, None].float() * (1.0 / base**exponents)
    angles = torch.cat((angles, angles), dim=-1)
    return angles.cos(), angles.sin()


def apply_rotary(x: torch.Tensor, rotary: Rotary) -> torch.Tensor:
    """Rotate the first channels of each head in fp32, as many as the tables have.

    Args:
        x: ``[B, heads, T, head_dim]``, any float dtype.
        rotary: From :func:`rotary_tables`.

    Returns:
        As ``x``, in its dtype.
    """
    cos, sin = rotary
    turned, rest = x[..., : cos.shape[-1]], x[..., cos.shape[-1] :]
    turned = turned.to(torch.promote_types(x.dtype, torch.float32))
    first, second = turned.chunk(2, dim=-1)
    turned = (turned * cos + torch.cat((-second, first), dim=-1) * sin).to(x.dtype)
    return torch.cat((turned, rest), dim=-1) if rest.shape[-1] else turned


def positions_in_row(attention_mask: torch.Tensor | None, seen: int, hidden: torch.Tensor) -> torch.Tensor:
    """Number each row's places from its first token, so that padding on the left changes nothing.

    Args:
        attention_mask: ``[B, S]``, true where there is a token, cached ones included; another form, or None, says
            that no row is padded on the left.
        seen: Tokens in the cache.
        hidden: ``[B, T, C]``, the tokens that come now.

    Returns:
        ``[B or 1, T]`` int64.
    """
    length = hidden.shape[1]
    if attention_mask is None or attention_mask.ndim != 2:
        return torch.arange(seen, seen + length, device=hidden.device)[None]
    first = attention_mask.to(hidden.device).long().argmax(-1, keepdim=True)
    places = torch.arange(attention_mask.shape[1], device=hidden.device) - first
    return places[:, -length:].clamp(min=0)
