"""Monkey: pixels and tokens in, next-token logits out.

Parameter names and shapes are those of the published checkpoints. This forward is the reference: what makes
it leaner lives in :mod:`vlm_lora_monkey.forward`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig
from transformers.cache_utils import Cache

from vlm_lora_monkey.configuration import MonkeyConfig, resolve_variant
from vlm_lora_monkey.language import MonkeyBlock, log_n_scale, ntk_factor, rotary_of
from vlm_lora_monkey.names import EMBEDDINGS, IGNORED_TENSORS, LANGUAGE_LORA_NAME, TRUNK, VISION_LORA_NAME
from vlm_lora_monkey.visual import MonkeyVisionTower
from vlm_lora_plugin.errors import ModelError
from vlm_lora_plugin.models import DecoderTrunk, ImageBlock, Images, ImageTextModel, RMSNorm


class MonkeyModel(DecoderTrunk):
    """Embeddings, vision tower and the layers of the language model."""

    config: MonkeyConfig
    blocks_name = "h"
    norm_name = "ln_f"

    def __init__(self, config: MonkeyConfig) -> None:
        super().__init__(config)
        self.wte: nn.Module = nn.Embedding(config.vocab_size, config.hidden_size)
        self.drop = nn.Dropout(config.emb_dropout_prob)
        self.h = nn.ModuleList(MonkeyBlock(config, index) for index in range(config.num_hidden_layers))
        self.ln_f = RMSNorm(config.hidden_size, config.layer_norm_epsilon)
        self.visual = MonkeyVisionTower(config.vision)

    def block_inputs(
        self, position_ids: torch.Tensor, image_mask: torch.Tensor | None, length: int, cache: Cache | None
    ) -> dict[str, Any]:
        """Return the rotary tables, and outside of training the queries' scale."""
        config = self.config
        dim = int(config.kv_channels * config.rotary_pct)
        scaled = config.use_logn_attn and not self.training
        return {
            "rotary": rotary_of(position_ids, dim, config.rotary_emb_base, self._ntk_factor(length, cache)),
            "log_n": log_n_scale(position_ids, config.seq_length) if scaled else None,
        }

    def _ntk_factor(self, length: int, cache: Cache | None) -> float:
        """Return the factor of this forward: 1 in training, else by the prompt's length.

        A cache keeps its prompt's factor, as its keys are rotated with it; so a generation is consistent in
        itself, and equal to one without cache as long as it stays below the next threshold.
        """
        if self.training or not self.config.use_dynamic_ntk:
            return 1.0
        factor = ntk_factor(length, self.config.seq_length)
        if cache is None:
            return factor
        if cache.get_seq_length() == 0:
            cache.ntk_factor = factor  # type: ignore[attr-defined]
        return cast(float, getattr(cache, "ntk_factor", factor))


class MonkeyForCausalLM(ImageTextModel):
    """The Monkey model with its language-modelling head.

    ``pixel_values`` are ``[N, 3, image_size, image_size]``. Each row counts its places from its first token.
    """

    config_class = MonkeyConfig
    config: MonkeyConfig
    base_model_prefix = TRUNK
    title = "Monkey"
    trunk_name = TRUNK
    embeddings_name = EMBEDDINGS
    builtin_lora = (VISION_LORA_NAME, LANGUAGE_LORA_NAME)
    ignored_tensors = IGNORED_TENSORS
    _no_split_modules = ["MonkeyBlock", "VisualBlock"]  # noqa: RUF012  the base class's own form
    _keys_to_ignore_on_load_unexpected = list(IGNORED_TENSORS)  # noqa: RUF012

    def __init__(self, config: MonkeyConfig) -> None:
        super().__init__(config)
        self.transformer = MonkeyModel(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    @property
    def image_side(self) -> int:
        """Side of a square image, in pixels."""
        return self.config.vision.image_size

    @property
    def image_block(self) -> ImageBlock:
        """``<img>``, places of any ids, ``</img>``."""
        return ImageBlock(self.config.image_start_id, self.config.image_end_id, self.config.image_token_span)

    def image_features(self, images: Images) -> torch.Tensor:
        """Return the tokens of images ``[N, span, C]``.

        Raises:
            ModelError: They do not have the size that the tower takes.
        """
        pixels, size = cast(torch.Tensor, images), self.image_side
        if pixels.shape[1:] != (3, size, size):
            raise ModelError(
                f"pixel_values has the shape {tuple(pixels.shape)}, not [N, 3, {size}, {size}]",
                fix="Use the model's own processor.",
            )
        return self.transformer.visual.encode(pixels)

    def text_dropout(self, embeds: torch.Tensor) -> torch.Tensor:
        """Drop of the text's embeddings what the config says."""
        return cast(torch.Tensor, self.transformer.drop(embeds))

    @classmethod
    def complete_config(cls, config: Any, folder: Path) -> PreTrainedConfig:
        """Let a folder's tensors tell the variant where its config does not."""
        return resolve_variant(config, folder)


AutoConfig.register(MonkeyConfig.model_type, MonkeyConfig, exist_ok=True)
AutoModelForCausalLM.register(MonkeyConfig, MonkeyForCausalLM, exist_ok=True)
