"""OmniLMM's eyes: timm's EVA-02 without its last block, and the resampler behind it."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from transformers import initialization as init
from transformers.modeling_layers import GradientCheckpointingLayer

from vlm_lora_omnilmm.configuration import OmniLMMConfig, TowerSettings
from vlm_lora_plugin.errors import ModelError
from vlm_lora_plugin.models import NORM_EPS, Resampler, to_weight_dtype

try:
    from timm.models.eva import Eva, EvaAttention, EvaBlockPostNorm
except ImportError as error:
    raise ModelError(
        f"OmniLMM's vision tower needs timm, which cannot be imported: {error}",
        fix="pip install 'vlm-lora-plugin[omnilmm]'",
    ) from error

INITIAL_STD = 0.02

_norm = partial(nn.LayerNorm, eps=1e-6)


class TowerAttention(EvaAttention):  # type: ignore[misc]  # timm is untyped
    """timm's attention with two differences that leave its result as it is.

    ``qkv`` is a layer that is really called, so that LoRA on it is alive. The key's bias, always zero, is no
    buffer: outside of every checkpoint, transformers 5 would leave it uninitialised
    (timm's ``k_bias`` is not persistent).
    """

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__(dim, num_heads=num_heads, qkv_bias=True, scale_norm=False)
        del self.k_bias

    def forward(self, x: torch.Tensor, **_: Any) -> torch.Tensor:
        """Attend over the tokens ``[N, L, embed_dim]``."""
        batch, length, _dim = x.shape
        bias = torch.cat((self.q_bias, torch.zeros_like(self.q_bias), self.v_bias))
        qkv = self.qkv(x)
        qkv = (qkv + bias.to(qkv.dtype)).view(batch, length, 3, self.num_heads, -1).permute(2, 0, 3, 1, 4)
        context = F.scaled_dot_product_attention(*qkv.unbind(0))
        out: torch.Tensor = self.proj(context.transpose(1, 2).reshape(batch, length, -1))
        return out

    def init_own_weights(self) -> None:
        """Initialise what was not loaded."""
        init.zeros_(self.q_bias)
        init.zeros_(self.v_bias)


class TowerBlock(GradientCheckpointingLayer, EvaBlockPostNorm):  # type: ignore[misc]
    """timm's block, which transformers' checkpointing switches reach."""

    def __init__(self, settings: TowerSettings) -> None:
        super().__init__(settings.embed_dim, settings.num_heads, mlp_ratio=settings.mlp_ratio, norm_layer=_norm)
        self.attn = TowerAttention(settings.embed_dim, settings.num_heads)


class VisionTower(Eva):  # type: ignore[misc]
    """EVA-02 enormous, or another size, up to its second to last block and with its final norm."""

    def __init__(self, settings: TowerSettings) -> None:
        super().__init__(
            img_size=settings.image_size,
            patch_size=settings.patch_size,
            embed_dim=settings.embed_dim,
            depth=0,
            num_heads=settings.num_heads,
            num_classes=0,
            global_pool="token",
            norm_layer=_norm,
            use_post_norm=True,
            dynamic_img_size=True,
            dynamic_img_pad=True,
        )
        self.blocks = nn.ModuleList(TowerBlock(settings) for _ in range(settings.depth - 1))

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """Return the patches ``[N, L, embed_dim]`` of images ``[N, 3, H, W]``, the class token taken off."""
        tokens = self.forward_features(to_weight_dtype(pixel_values, self.patch_embed.proj.weight))
        patches: torch.Tensor = tokens[:, self.num_prefix_tokens :]
        return patches

    def init_own_weights(self) -> None:
        """Initialise what was not loaded."""
        init.normal_(self.cls_token, std=INITIAL_STD)
        init.normal_(self.pos_embed, std=INITIAL_STD)


class OmniLMMResampler(Resampler):
    """The shared resampler with a norm and a projection at its end."""

    def __init__(self, config: OmniLMMConfig) -> None:
        dim = config.hidden_size
        super().__init__(
            queries=config.num_query, dim=dim, kv_dim=config.vision.embed_dim, num_heads=config.resampler_heads
        )
        self.ln_post = nn.LayerNorm(dim, eps=NORM_EPS)
        self.proj = nn.Parameter(torch.empty(dim, dim))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map patches ``[N, L, embed_dim]`` to tokens ``[N, num_query, hidden_size]``."""
        x = self.ln_post(to_weight_dtype(super().forward(x), self.ln_post.weight))
        return to_weight_dtype(x, self.proj) @ self.proj

    def init_own_weights(self) -> None:
        """Initialise what was not loaded."""
        super().init_own_weights()
        init.normal_(self.proj, std=len(self.proj) ** -0.5)
