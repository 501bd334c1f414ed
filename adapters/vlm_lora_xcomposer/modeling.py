"""InternLM-XComposer 2, 2-4KHD and 2.5: pixels and tokens in, next-token logits out.

Parameter names and shapes are those of the published checkpoints. This forward is the reference: what makes
it leaner lives in :mod:`vlm_lora_xcomposer.forward`.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig
from transformers import initialization as init
from transformers.cache_utils import Cache

from vlm_lora_plugin.models import DecoderTrunk, ImageRunsModel, Images, RMSNorm, stop_also_at, to_weight_dtype
from vlm_lora_xcomposer.configuration import XComposerConfig
from vlm_lora_xcomposer.grids import grid_of
from vlm_lora_xcomposer.images import number_of_image_tokens, transformed_size
from vlm_lora_xcomposer.language import XComposerBlock, rotary_of
from vlm_lora_xcomposer.lora import LowRankProjection
from vlm_lora_xcomposer.names import EMBEDDINGS_PREFIX, HEAD_PREFIX, IGNORED_TENSORS, PLORA_NAME
from vlm_lora_xcomposer.shapes import with_sizes_of_tensors
from vlm_lora_xcomposer.visual import (
    VisionEmbeddings,
    VisionTower,
    in_token_order,
    merge_patches,
    views_of,
)


class XComposerModel(DecoderTrunk):
    """Embeddings and layers of the language model."""

    config: XComposerConfig

    def __init__(self, config: XComposerConfig) -> None:
        super().__init__(config)
        self.tok_embeddings: nn.Module = nn.Embedding(config.vocab_size, config.hidden_size, config.pad_token_id)
        self.layers = nn.ModuleList(XComposerBlock(config, index) for index in range(config.num_hidden_layers))
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)

    def block_inputs(
        self, position_ids: torch.Tensor, image_mask: torch.Tensor | None, length: int, cache: Cache | None
    ) -> dict[str, Any]:
        """Return the rotary tables, and where partial LoRA acts."""
        return {"rotary": rotary_of(position_ids, self.config, length), "image_mask": image_mask}


class XComposerForCausalLM(ImageRunsModel):
    """The whole model: vision tower, projector, separators, language model and head.

    An image is as many ``config.image_token_id`` in a row as its tokens. ``pixel_values`` are the transformed images
    ``[3, H_i, W_i]``, whose sides are multiples of ``config.image_size``. Each row counts its places from its first
    token.
    """

    config_class = XComposerConfig
    config: XComposerConfig
    base_model_prefix = ""  # the language model is one part among others, so no prefix stands for the base
    title = "XComposer"
    embeddings_name = EMBEDDINGS_PREFIX
    head_name = HEAD_PREFIX
    ignored_tensors = IGNORED_TENSORS
    zeroed_without_images = (PLORA_NAME,)
    _no_split_modules = ["XComposerBlock", "CLIPEncoderLayer"]  # noqa: RUF012  the base class's own form
    _keys_to_ignore_on_load_unexpected = list(IGNORED_TENSORS)  # noqa: RUF012
    _supports_flash_attn = True

    def __init__(self, config: XComposerConfig) -> None:
        super().__init__(config)
        hidden, inner = config.hidden_size, cast(int, config.projector_size)
        self.model = XComposerModel(config)
        self.output = nn.Linear(hidden, config.vocab_size, bias=False)
        if config.takes_crops:
            self.plora_glb_GN = nn.Parameter(torch.zeros(1, 1, config.image_token_width))
            self.plora_sub_GN = nn.Parameter(torch.zeros(1, 1, 1, config.image_token_width))
        self.vit = VisionTower(config)
        self.vision_proj = _projector(config.image_token_width, inner, hidden)
        if config.video_memory_size is not None:
            self.video_mem_proj = _projector(config.video_memory_size, inner, hidden)
        self.post_init()

    @property
    def image_token_id(self) -> int:
        """The id that marks the places of images."""
        return cast(int, self.config.image_token_id)

    def encode_images(self, images: Images) -> tuple[torch.Tensor, list[int]]:
        """Return the tokens of transformed images ``[3, H_i, W_i]``, ``[sum, C]``, and how many each has.

        Raises:
            ModelError: An image's size is not one that the model sees.
        """
        grids = [grid_of(image, self.config) for image in images]
        features = merge_patches(self.vit(views_of(list(images), self.config)), self.config.merge_size)
        if self.config.takes_crops:
            tokens = in_token_order(features, grids, self.plora_sub_GN, self.plora_glb_GN)
        else:
            tokens = list(features.flatten(1, 2))
        first = cast(nn.Linear, self.vision_proj[0])
        projected: torch.Tensor = self.vision_proj(to_weight_dtype(torch.cat(tokens), first.weight))
        return projected, [len(part) for part in tokens]

    def image_lengths(self, images: Images) -> list[int]:
        """Return how many tokens each of some transformed images has."""
        return [number_of_image_tokens(image.shape[1], image.shape[2], self.config) for image in images]

    def image_size(self, height: int, width: int, settings: Mapping[str, Any]) -> tuple[int, int]:
        """Return the ``(height, width)`` in pixels that the processor gives an image, within ``hd_num`` crops."""
        new_width, new_height = transformed_size(width, height, self.config, self._hd_num(settings))
        return new_height, new_width

    def largest_image_size(self, settings: Mapping[str, Any]) -> tuple[int, int]:
        """Return the ``(height, width)`` in pixels of the grid with the most crops, of these the least elongated."""
        side, most = self.config.image_size, self._hd_num(settings) or 1
        grids = [(rows, most // rows) for rows in range(1, most + 1)]
        rows, columns = max(grids, key=lambda grid: (grid[0] * grid[1], -abs(grid[0] - grid[1])))
        return rows * side, columns * side

    def _hd_num(self, settings: Mapping[str, Any]) -> int | None:
        return settings.get("hd_num", self.config.hd_num) if self.config.takes_crops else None

    @classmethod
    def complete_config(cls, config: Any, folder: Path) -> PreTrainedConfig:
        """Let a folder's tensors tell the sizes that its config does not."""
        return with_sizes_of_tensors(config, folder)

    def after_loading(self) -> None:
        """Let an answer end where its turn does; upstream's chat passes the same two ids, published files only one."""
        stop_also_at(self.generation_config, self.config.turn_end_id)

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        std = self.config.initializer_range
        if isinstance(module, LowRankProjection):
            init.normal_(module.weight, std=std)
        elif isinstance(module, VisionEmbeddings):
            init.normal_(module.class_embedding, std=std)
        elif module is self and self.config.takes_crops:
            init.normal_(self.plora_glb_GN, std=std)
            init.normal_(self.plora_sub_GN, std=std)


def _projector(width: int, inner: int, hidden: int) -> nn.Sequential:
    """Upstream's ``mlp2x_gelu``."""
    return nn.Sequential(nn.Linear(width, inner), nn.GELU(), nn.Linear(inner, hidden))


AutoConfig.register(XComposerConfig.model_type, XComposerConfig, exist_ok=True)
AutoModelForCausalLM.register(XComposerConfig, XComposerForCausalLM, exist_ok=True)
