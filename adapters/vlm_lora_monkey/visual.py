"""Monkey's vision tower: one transformer over every window of an image, and the resampler behind it."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F
from transformers import initialization as init
from transformers.modeling_layers import GradientCheckpointingLayer

from vlm_lora_monkey.configuration import VisionSettings
from vlm_lora_monkey.lora import ATTENTION_RANK, MLP_RANK, LoraAdapter
from vlm_lora_plugin.models import Resampler, stretch_grid, to_weight_dtype

NORM_EPS = 1e-6
STORED_POSITIONS = 256  # a 16 x 16 grid, stretched to the window's grid


class VisualAttention(nn.Module):
    """Self-attention of the tower, with one LoRA set per window beside its two linear layers."""

    def __init__(self, settings: VisionSettings) -> None:
        super().__init__()
        width = settings.width
        self.num_heads = settings.heads
        self.in_proj = nn.Linear(width, 3 * width)
        self.in_proj_lora = _lora_sets(settings, 3 * width, ATTENTION_RANK)
        self.out_proj = nn.Linear(width, width)
        self.out_proj_lora = _lora_sets(settings, width, ATTENTION_RANK)

    def forward(self, x: torch.Tensor, window: int | None) -> torch.Tensor:
        """Attend over the patches ``[N, L, width]``; ``window`` picks the LoRA set, None takes none."""
        batch, length, width = x.shape
        qkv = self.in_proj(x)
        if window is not None:
            qkv = self.in_proj_lora[window](x, qkv)
        # The fused layer is interleaved by head: query, key and value of head 0, then those of head 1.
        query, key, value = qkv.view(batch, length, self.num_heads, -1).transpose(1, 2).chunk(3, dim=-1)
        context = F.scaled_dot_product_attention(query, key, value)
        context = context.transpose(1, 2).reshape(batch, length, width)
        out: torch.Tensor = self.out_proj(context)
        return out if window is None else self.out_proj_lora[window](context, out)


class VisualMLP(nn.Module):
    """Two linear layers with a GELU between them."""

    def __init__(self, settings: VisionSettings) -> None:
        super().__init__()
        hidden = int(settings.width * settings.mlp_ratio)
        self.c_fc = nn.Linear(settings.width, hidden)
        self.c_proj = nn.Linear(hidden, settings.width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map ``[N, L, width]`` to ``[N, L, width]``."""
        out: torch.Tensor = self.c_proj(F.gelu(self.c_fc(x)))
        return out


class VisualBlock(GradientCheckpointingLayer):
    """One layer of the tower. Its MLP's LoRA reads the residual stream before the norm."""

    def __init__(self, settings: VisionSettings) -> None:
        super().__init__()
        self.ln_1 = nn.LayerNorm(settings.width, eps=NORM_EPS)
        self.attn = VisualAttention(settings)
        self.ln_2 = nn.LayerNorm(settings.width, eps=NORM_EPS)
        self.mlp = VisualMLP(settings)
        self.mlp_lora = _lora_sets(settings, settings.width, MLP_RANK)

    def forward(self, x: torch.Tensor, window: int | None) -> torch.Tensor:
        """Return the patches ``[N, L, width]`` after this layer."""
        x = x + self.attn(self.ln_1(x), window)
        out: torch.Tensor = x + self.mlp(self.ln_2(x))
        return out if window is None else self.mlp_lora[window](x, out)


class VisualTransformer(nn.Module):
    """The tower's stack of layers."""

    def __init__(self, settings: VisionSettings) -> None:
        super().__init__()
        self.resblocks = nn.ModuleList(VisualBlock(settings) for _ in range(settings.layers))

    def forward(self, x: torch.Tensor, window: int | None) -> torch.Tensor:
        """Return the patches ``[N, L, width]`` after all layers."""
        for block in self.resblocks:
            x = block(x, window)
        return x


class MonkeyVisionTower(nn.Module):
    """From pixels to image tokens: every window by itself, then the whole image shrunk to a window's size."""

    def __init__(self, settings: VisionSettings) -> None:
        super().__init__()
        self.settings = settings
        self.conv1 = nn.Conv2d(3, settings.width, settings.patch_size, settings.patch_size, bias=False)
        self.positional_embedding = nn.Parameter(torch.empty(STORED_POSITIONS, settings.width))
        self.ln_pre = nn.LayerNorm(settings.width, eps=NORM_EPS)
        self.transformer = VisualTransformer(settings)
        self.attn_pool = Resampler(
            queries=settings.n_queries, dim=settings.output_dim, kv_dim=settings.width, num_heads=settings.pool_heads
        )
        self.ln_post = nn.LayerNorm(settings.output_dim, eps=NORM_EPS)
        self.proj = nn.Parameter(torch.empty(settings.output_dim, settings.output_dim))

    def encode(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """Return the tokens of whole images.

        Args:
            pixel_values: ``[N, 3, S, S]`` with S the config's image size.

        Returns:
            ``[N, n_queries * (windows + 1), output_dim]``: windows row by row, then the global view.
        """
        size, per_side = self.settings.window_size, self.settings.windows_per_side
        windows = [
            pixel_values[..., row * size : (row + 1) * size, column * size : (column + 1) * size]
            for row in range(per_side)
            for column in range(per_side)
        ]
        tokens = [self(view, window) for window, view in enumerate(windows)]
        shrunk = F.interpolate(pixel_values, size=(size, size), mode="bicubic")
        return torch.cat([*tokens, self(shrunk, None)], dim=1)

    def forward(self, view: torch.Tensor, window: int | None) -> torch.Tensor:
        """Return the tokens ``[N, n_queries, output_dim]`` of one view ``[N, 3, window_size, window_size]``.

        ``window`` is the window's number, which picks the LoRA set; None is the global view, without LoRA.
        """
        x = self.conv1(to_weight_dtype(view, self.conv1.weight)).flatten(2).transpose(1, 2)
        x = self.ln_pre(x + stretch_grid(self.positional_embedding, x.shape[1]))
        x = self.attn_pool(self.transformer(x, window))
        x = self.ln_post(to_weight_dtype(x, self.ln_post.weight))
        return to_weight_dtype(x, self.proj) @ self.proj

    def init_own_weights(self) -> None:
        """Initialise what was not loaded."""
        init.normal_(self.positional_embedding, std=self.settings.width**-0.5)
        init.normal_(self.proj, std=self.settings.output_dim**-0.5)


def _lora_sets(settings: VisionSettings, out_features: int, r: int) -> nn.ModuleList:
    return nn.ModuleList(
        LoraAdapter(settings.width, out_features, r, settings.lora_dropout) for _ in range(settings.lora_repeat_num)
    )
