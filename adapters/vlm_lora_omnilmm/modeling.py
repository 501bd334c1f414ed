"""OmniLMM: pixels and tokens in, next-token logits out.

Parameter names and shapes are those of the published checkpoint. This forward is the reference: what makes it
leaner lives in :mod:`vlm_lora_omnilmm.forward`.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig
from transformers.modeling_outputs import BaseModelOutputWithPast
from transformers.models.mistral.modeling_mistral import (
    MistralModel,
    MistralPreTrainedModel,
    MistralRotaryEmbedding,
)

from vlm_lora_omnilmm.configuration import OmniLMMConfig
from vlm_lora_omnilmm.names import IGNORED_TENSORS
from vlm_lora_omnilmm.tokenization import resolve_image_ids
from vlm_lora_plugin.errors import ModelError, listed
from vlm_lora_plugin.models import (
    ImageBlock,
    Images,
    ImageTextModel,
    init_own_weights,
    is_sharded,
    several_ranks,
)


def passes_by_size(images: Sequence[torch.Tensor]) -> list[list[int]]:
    """Return which of some images ``[3, H, W]`` go through the tower together: the indices of each size."""
    together: defaultdict[torch.Size, list[int]] = defaultdict(list)
    for index, image in enumerate(images):
        together[image.shape].append(index)
    return list(together.values())


class OmniLMMPreTrainedModel(MistralPreTrainedModel):
    """What the whole model and its trunk share."""

    config_class = OmniLMMConfig
    config: OmniLMMConfig
    _no_split_modules = ["MistralDecoderLayer", "TowerBlock"]  # noqa: RUF012  the base class's own form

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)  # type: ignore[no-untyped-call]
        init_own_weights(module)


class OmniLMMModel(OmniLMMPreTrainedModel, MistralModel):
    """Mistral, and the vision modules that OmniLMM keeps beside its layers."""

    def __init__(self, config: OmniLMMConfig) -> None:
        # timm takes a second to import, and is needed by nobody who only imports transformers' auto classes.
        from vlm_lora_omnilmm.visual import OmniLMMResampler, VisionTower

        super().__init__(config)
        self.vision_tower = VisionTower(config.vision)
        self.resampler = OmniLMMResampler(config)

    def forward(
        self, inputs_embeds: torch.Tensor, image_mask: torch.Tensor | None = None, **kwargs: Any
    ) -> BaseModelOutputWithPast:
        """Return the last hidden states ``[B, T, C]`` (after the norm) and the cache.

        Args:
            inputs_embeds: ``[B, T, C]``, image tokens in their places.
            image_mask: Not needed here.
            **kwargs: Of Mistral's trunk.
        """
        # Embeddings that learn are fp32; the residual stream stays in the layers' dtype.
        embeds = cast(torch.FloatTensor, inputs_embeds.to(self.norm.weight.dtype))
        return cast(BaseModelOutputWithPast, super().forward(inputs_embeds=embeds, return_dict=True, **kwargs))

    def encode_images(self, pixel_values: Images) -> torch.Tensor:
        """Return the tokens of images ``[N, num_query, C]``, in order; those of one size take one pass together.

        Args:
            pixel_values: ``[N, 3, H, W]``, or N tensors ``[3, H, W]``, perhaps of several sizes.

        Raises:
            ModelError: Images of several sizes would leave other ranks waiting.
        """
        if isinstance(pixel_values, torch.Tensor):
            return cast(torch.Tensor, self.resampler(self.vision_tower(pixel_values)))
        passes = passes_by_size(pixel_values)
        if len(passes) > 1:
            self._refuse_ranks([tuple(pixel_values[images[0]].shape) for images in passes])
        tokens = torch.cat([self.encode_images(torch.stack([pixel_values[i] for i in images])) for images in passes])
        if len(passes) == 1:
            return tokens
        return tokens[torch.tensor([i for images in passes for i in images], device=tokens.device).argsort()]

    def _refuse_ranks(self, sizes: Sequence[tuple[int, ...]]) -> None:
        if several_ranks() and (self.training or any(map(is_sharded, self.parameters()))):
            raise ModelError(
                f"The images of this batch have several sizes: {listed([str(list(size)) for size in sizes])}",
                why="They would take several passes through the tower, and other ranks would wait for as many.",
                fix="Use the model's own processor, which brings all images to one size.",
            )


class OmniLMMForCausalLM(OmniLMMPreTrainedModel, ImageTextModel):
    """The OmniLMM model with its language-modelling head.

    ``pixel_values`` are ``[N, 3, S, S]``; N tensors ``[3, H, W]`` are taken too, and go through the tower in one pass
    for each size among them. Places are counted from the row's start.
    """

    title = "OmniLMM"
    returns_attentions = True
    ignored_tensors = IGNORED_TENSORS

    def __init__(self, config: OmniLMMConfig) -> None:
        super().__init__(config)
        self.model = OmniLMMModel(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    @property
    def image_block(self) -> ImageBlock:
        """``<im_start>``, places of any ids, ``<im_end>``."""
        _, start_id, end_id = self.config.image_ids
        return ImageBlock(start_id, end_id, self.config.num_query)

    def image_features(self, images: Images) -> torch.Tensor:
        """Return the tokens of images ``[N, num_query, C]``."""
        return cast(torch.Tensor, self.model.encode_images(images))

    def fill_buffers(self, device: str) -> None:
        """Fill the only buffers of the model, which are in no checkpoint."""
        self.model.rotary_emb = MistralRotaryEmbedding(self.config).to(device)

    @classmethod
    def complete_config(cls, config: Any, folder: Path) -> PreTrainedConfig:
        """Let a folder's tokenizer tell the image tokens where its config does not."""
        return resolve_image_ids(config, folder)


AutoConfig.register(OmniLMMConfig.model_type, OmniLMMConfig, exist_ok=True)
AutoModelForCausalLM.register(OmniLMMConfig, OmniLMMForCausalLM, exist_ok=True)
