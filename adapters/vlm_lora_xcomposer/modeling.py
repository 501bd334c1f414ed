"""InternLM-XComposer 2, 2-4KHD and 2.5: pixels and tokens in, next-token logits out.

Parameter names and shapes are those of the published checkpoints. This forward is the reference: what makes
it leaner lives in :mod:`vlm_lora_xcomposer.forward`.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, GenerationMixin, PreTrainedModel
from transformers import initialization as init
from transformers.cache_utils import Cache, DynamicCache
from transformers.masking_utils import create_causal_mask
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast

from vlm_lora_plugin.errors import ModelError
from vlm_lora_plugin.models import (
    ImagesInPrompt,
    RMSNorm,
    head_outputs,
    positions_in_row,
    refuse_contradicting_inputs,
    to_weight_dtype,
)
from vlm_lora_xcomposer.configuration import XComposerConfig
from vlm_lora_xcomposer.generation import images_of_rows, stop_at_turn_end
from vlm_lora_xcomposer.grids import grid_of
from vlm_lora_xcomposer.language import XComposerBlock, rotary_of
from vlm_lora_xcomposer.names import IGNORED_TENSORS
from vlm_lora_xcomposer.plora import LowRankProjection
from vlm_lora_xcomposer.shapes import with_sizes_of_tensors
from vlm_lora_xcomposer.splicing import find_image_tokens, mask_of, put_images
from vlm_lora_xcomposer.vision import (
    VisionEmbeddings,
    VisionTower,
    in_token_order,
    merge_patches,
    views_of,
)


class XComposerModel(nn.Module):
    """Embeddings and layers of the language model."""

    def __init__(self, config: XComposerConfig) -> None:
        super().__init__()
        self.config = config
        self.tok_embeddings: nn.Module = nn.Embedding(config.vocab_size, config.hidden_size, config.pad_token_id)
        self.layers = nn.ModuleList(XComposerBlock(config, index) for index in range(config.num_hidden_layers))
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)

    def forward(
        self,
        inputs_embeds: torch.Tensor,
        image_mask: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        past_key_values: Cache | None = None,
        use_cache: bool | None = None,
        output_hidden_states: bool = False,
    ) -> BaseModelOutputWithPast:
        """Return the last hidden states ``[B, T, C]`` (after ``norm``) and the cache.

        Args:
            inputs_embeds: ``[B, T, C]``, image tokens in their places.
            image_mask: ``[B, T, 1]`` bool, true at image tokens; None where there are none.
            attention_mask: As in :meth:`XComposerForCausalLM.forward`, and so are the rest.
            position_ids: ``[B, T]``.
            past_key_values: Cache of the tokens before these.
            use_cache: Whether to make one.
            output_hidden_states: Whether to return the states before every layer and after the last norm.
        """
        if use_cache and past_key_values is None:
            past_key_values = DynamicCache()
        seen = 0 if past_key_values is None else past_key_values.get_seq_length()
        hidden = inputs_embeds
        mask = create_causal_mask(
            config=self.config,
            inputs_embeds=hidden,
            attention_mask=attention_mask,
            past_key_values=past_key_values,
            position_ids=position_ids,
        )
        if position_ids is None:
            position_ids = positions_in_row(attention_mask, seen, hidden)
        rotary = rotary_of(position_ids, self.config, seen + hidden.shape[1])
        states = []
        for block in self.layers:
            states.append(hidden)
            hidden = block(hidden, rotary, image_mask=image_mask, mask=mask, past_key_values=past_key_values)
        hidden = self.norm(hidden)
        return BaseModelOutputWithPast(
            last_hidden_state=hidden,
            past_key_values=past_key_values,
            hidden_states=cast(tuple[torch.FloatTensor, ...], (*states, hidden)) if output_hidden_states else None,
        )


class XComposerForCausalLM(PreTrainedModel, ImagesInPrompt, GenerationMixin):
    """The whole model: vision tower, projector, separators, language model and head."""

    config_class = XComposerConfig
    config: XComposerConfig
    base_model_prefix = ""  # the language model is one part among others, so no prefix stands for the base
    main_input_name = "input_ids"
    input_modalities = ["image", "text"]  # noqa: RUF012
    supports_gradient_checkpointing = True
    accepts_loss_kwargs = True  # the Trainer then passes num_items_in_batch
    _no_split_modules = ["XComposerBlock", "CLIPEncoderLayer"]  # noqa: RUF012  the base class's own form
    _skip_keys_device_placement = ["past_key_values"]  # noqa: RUF012
    _keys_to_ignore_on_load_unexpected = list(IGNORED_TENSORS)  # noqa: RUF012
    _supports_sdpa = True
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
        self.post_init()  # type: ignore[no-untyped-call]
        self.generation_config.use_cache = True  # published configs switch it off, for training
        stop_at_turn_end(self.generation_config, config)

    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        pixel_values: Sequence[torch.Tensor] | torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        num_items_in_batch: torch.Tensor | int | None = None,
        position_ids: torch.Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: torch.Tensor | None = None,
        use_cache: bool | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        logits_to_keep: int | torch.Tensor = 0,
    ) -> CausalLMOutputWithPast | tuple[object, ...]:
        """Run the model.

        Args:
            input_ids: ``[B, T]`` integers. An image is as many ``config.image_token_id`` in a row as its tokens;
                a row may hold none, one or several.
            attention_mask: ``[B, S]``, true where there is a token, padding on either side; S counts the
                cached tokens too.
            pixel_values: The transformed images ``[3, H_i, W_i]``, in the order of their places over the batch;
                sides are multiples of ``config.image_size``. Only with the prompt when a cache is used.
            labels: ``[B, T]`` integers, -100 where nothing is supervised; shifted here.
            num_items_in_batch: What the summed loss is divided by; see
                :func:`vlm_lora_plugin.models.loss.causal_lm_loss`.
            position_ids: ``[B, T]``; by default each row counts its places from its first token.
            past_key_values: Cache of the tokens before these.
            inputs_embeds: ``[B, T, C]`` in place of ``input_ids``, for text alone.
            use_cache: Return a cache; the default is the config's, and off with labels or in training.
            output_attentions: Not available; must be false.
            output_hidden_states: Also return the hidden states before every layer and after the last norm.
            return_dict: False returns the outputs as a tuple; the default is the config's.
            logits_to_keep: Compute the logits of the last n positions, or of these positions; 0 is all.

        Returns:
            ``loss`` (fp32 scalar, with labels), ``logits`` [B, T, vocab_size], ``past_key_values`` and
            ``hidden_states``.

        Raises:
            ModelError: The images do not fit the image places, or the inputs contradict each other.
        """
        if output_attentions:
            raise ModelError("XComposer returns no attention maps", fix="Leave output_attentions out.")
        if use_cache is None:
            use_cache = self.config.use_cache and labels is None and not self.training
        if output_hidden_states is None:
            output_hidden_states = bool(self.config.output_hidden_states)
        is_prompt = past_key_values is None or past_key_values.get_seq_length() == 0
        embeds, image_mask = self._embed(input_ids, inputs_embeds, pixel_values, is_prompt=is_prompt)
        outputs = self.model(
            inputs_embeds=embeds,
            image_mask=image_mask,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            use_cache=use_cache,
            output_hidden_states=output_hidden_states,
        )
        return head_outputs(
            outputs,
            self.output,
            labels=labels,
            num_items_in_batch=num_items_in_batch,
            logits_to_keep=logits_to_keep,
            return_dict=bool(self.config.return_dict if return_dict is None else return_dict),
        )

    def encode_images(self, images: Sequence[torch.Tensor] | torch.Tensor) -> tuple[torch.Tensor, list[int]]:
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

    def without_images(self, embeds: torch.Tensor) -> torch.Tensor:
        """Return the embeddings ``[B, T, C]`` of a prompt without an image; where ranks must agree, a patch looks."""
        return embeds

    def _embed(
        self,
        input_ids: torch.Tensor | None,
        inputs_embeds: torch.Tensor | None,
        pixel_values: Sequence[torch.Tensor] | torch.Tensor | None,
        *,
        is_prompt: bool,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Return the embeddings ``[B, T, C]`` with images in their places, and the mask of these ``[B, T, 1]``."""
        refuse_contradicting_inputs("XComposer", input_ids, inputs_embeds, pixel_values)
        if input_ids is None:
            return cast(torch.Tensor, inputs_embeds), None
        embeds: torch.Tensor = self.model.tok_embeddings(input_ids)
        image_token_id = cast(int, self.config.image_token_id)
        if pixel_values is None or not len(pixel_values):
            if is_prompt:
                find_image_tokens(input_ids, image_token_id, [])  # refuses places without an image
                embeds = self.without_images(embeds)
            return embeds, None
        tokens, lengths = self.encode_images(pixel_values)
        places = find_image_tokens(input_ids, image_token_id, lengths)
        return put_images(embeds, places, tokens), mask_of(places, input_ids)

    def count_images(self, input_ids: torch.Tensor, images: Sequence[torch.Tensor] | torch.Tensor) -> list[int]:
        """Return how many of the images each row of ``input_ids`` [B, T] has."""
        return images_of_rows(input_ids, images, self.config)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, *model_args: Any, **kwargs: Any) -> Any:
        """Load as the library does; a local folder's tensors tell the sizes that its config does not."""
        folder = Path(str(pretrained_model_name_or_path))
        if folder.is_dir() and not isinstance(kwargs.get("config"), (str, os.PathLike)):
            config = kwargs.get("config") or XComposerConfig.from_pretrained(folder)
            kwargs["config"] = with_sizes_of_tensors(config, folder)
        model = super().from_pretrained(pretrained_model_name_or_path, *model_args, **kwargs)
        whole = model[0] if isinstance(model, tuple) else model  # a tuple with output_loading_info
        stop_at_turn_end(whole.generation_config, whole.config)
        return model

    def get_input_embeddings(self) -> nn.Module:
        """Return the token embeddings."""
        return cast(nn.Module, self.model.tok_embeddings)

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Replace the token embeddings."""
        self.model.tok_embeddings = value

    def get_output_embeddings(self) -> nn.Module:
        """Return the head."""
        return cast(nn.Module, self.output)

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)  # type: ignore[no-untyped-call]
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
