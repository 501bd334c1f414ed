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
from transformers import AutoConfig, AutoModelForCausalLM, GenerationMixin
from transformers.cache_utils import Cache
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast
from transformers.models.mistral.modeling_mistral import MistralModel, MistralPreTrainedModel

from vlm_lora_omnilmm.configuration import OmniLMMConfig
from vlm_lora_plugin.errors import ModelError, listed
from vlm_lora_plugin.models import (
    Blocks,
    ImagesInPrompt,
    find_image_blocks,
    head_outputs,
    init_resampler,
    is_sharded,
    put_images,
    refuse_contradicting_inputs,
    several_ranks,
)

Images = torch.Tensor | Sequence[torch.Tensor]


def passes_by_size(images: Sequence[torch.Tensor]) -> list[list[int]]:
    """Return which of some images ``[3, H, W]`` go through the tower together: the indices of each size."""
    together: defaultdict[torch.Size, list[int]] = defaultdict(list)
    for index, image in enumerate(images):
        together[image.shape].append(index)
    return list(together.values())


class OmniLMMPreTrainedModel(MistralPreTrainedModel):
    """What both classes share."""

    config_class = OmniLMMConfig
    config: OmniLMMConfig
    input_modalities = ["image", "text"]  # noqa: RUF012  the base class's own form
    _no_split_modules = ["MistralDecoderLayer", "TowerBlock"]  # noqa: RUF012

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)  # type: ignore[no-untyped-call]
        init_resampler(module)
        init_own_weights = getattr(module, "init_own_weights", None)
        if callable(init_own_weights):
            init_own_weights()


class OmniLMMModel(OmniLMMPreTrainedModel, MistralModel):
    """Mistral with image tokens among its embeddings."""

    def __init__(self, config: OmniLMMConfig) -> None:
        # timm takes a second to import, and is needed by nobody who only imports transformers' auto classes.
        from vlm_lora_omnilmm.visual import OmniLMMResampler, VisionTower

        super().__init__(config)
        self.vision_tower = VisionTower(config.vision)
        self.resampler = OmniLMMResampler(config)

    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        pixel_values: Images | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> BaseModelOutputWithPast:
        """Return the last hidden states ``[B, T, C]`` (after the norm) and the cache.

        Arguments as in :meth:`OmniLMMForCausalLM.forward`.
        """
        seen = 0 if past_key_values is None else past_key_values.get_seq_length()
        embeds = self._embed(input_ids, inputs_embeds, pixel_values, is_prompt=seen == 0)
        outputs = super().forward(
            # Embeddings that learn are fp32; the residual stream stays in the layers' dtype.
            inputs_embeds=cast(torch.FloatTensor, embeds.to(self.norm.weight.dtype)),
            attention_mask=attention_mask,
            past_key_values=past_key_values,
            **kwargs,
        )
        return cast(BaseModelOutputWithPast, outputs)

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

    def place_images(self, embeds: torch.Tensor, blocks: Blocks, tokens: torch.Tensor) -> torch.Tensor:
        """Return ``embeds`` [B, T, C] with the tokens of every image in its block."""
        return put_images(embeds, blocks, tokens)

    def without_images(self, embeds: torch.Tensor) -> torch.Tensor:
        """Return the embeddings ``[B, T, C]`` of a prompt without an image; where ranks must agree, a patch looks."""
        return embeds

    def _embed(
        self,
        input_ids: torch.Tensor | None,
        inputs_embeds: torch.Tensor | None,
        pixel_values: Images | None,
        *,
        is_prompt: bool,
    ) -> torch.Tensor:
        refuse_contradicting_inputs("OmniLMM", input_ids, inputs_embeds, pixel_values)
        if input_ids is None:
            return cast(torch.Tensor, inputs_embeds)
        embeds: torch.Tensor = self.embed_tokens(input_ids)
        if not is_prompt and pixel_values is None:
            return embeds
        _, start_id, end_id = self.config.image_ids
        images = 0 if pixel_values is None else len(pixel_values)
        span = self.config.num_query
        blocks = find_image_blocks(input_ids, start_id=start_id, end_id=end_id, span=span, images=images)
        if blocks is None or pixel_values is None:
            return self.without_images(embeds)
        return self.place_images(embeds, blocks, self.encode_images(pixel_values))


class OmniLMMForCausalLM(OmniLMMPreTrainedModel, ImagesInPrompt, GenerationMixin):
    """The OmniLMM model with its language-modelling head."""

    main_input_name = "input_ids"
    accepts_loss_kwargs = True  # the Trainer then passes num_items_in_batch

    def __init__(self, config: OmniLMMConfig) -> None:
        super().__init__(config)
        self.model = OmniLMMModel(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()  # type: ignore[no-untyped-call]
        self.generation_config.use_cache = True  # published configs switch it off, for training

    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        pixel_values: Images | None = None,
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
            input_ids: ``[B, T]`` integers. An image is ``<im_start>``, ``config.num_query`` places of any ids,
                ``<im_end>``; a row may hold none, one or several.
            attention_mask: ``[B, S]``, true where there is a token; S counts the cached tokens too.
            pixel_values: ``[N, 3, S, S]`` floats: the images, in the order of their places over the batch. N
                tensors ``[3, H, W]`` are taken too, and go through the tower in one pass for each size among
                them. Only with the prompt when a cache is used.
            labels: ``[B, T]`` integers, -100 where nothing is supervised; shifted here.
            num_items_in_batch: What the summed loss is divided by; see
                :func:`vlm_lora_plugin.models.loss.causal_lm_loss`.
            position_ids: ``[B, T]``; by default places are counted from the row's start.
            past_key_values: Cache of the tokens before these.
            inputs_embeds: ``[B, T, C]`` in place of ``input_ids``, for text alone.
            use_cache: Return a cache; the default is the config's, and off with labels or in training.
            output_attentions: Also return the attention maps of the language model.
            output_hidden_states: Also return the hidden states before every layer and after the last norm.
            return_dict: False returns the outputs as a tuple; the default is the config's.
            logits_to_keep: Compute the logits of the last n positions, or of these positions; 0 is all.

        Returns:
            ``loss`` (fp32 scalar, with labels), ``logits`` [B, T, vocab_size], ``past_key_values``,
            ``hidden_states`` and ``attentions``.

        Raises:
            ModelError: The images do not fit the image places, or the inputs contradict each other.
        """
        if use_cache is None:
            use_cache = self.config.use_cache and labels is None and not self.training
        outputs = self.model(
            input_ids=input_ids,
            pixel_values=pixel_values,
            inputs_embeds=inputs_embeds,
            position_ids=position_ids,
            attention_mask=attention_mask,
            output_hidden_states=output_hidden_states,
            output_attentions=output_attentions,
            past_key_values=past_key_values,
            use_cache=use_cache,
            return_dict=True,
        )
        return head_outputs(
            outputs,
            self.lm_head,
            labels=labels,
            num_items_in_batch=num_items_in_batch,
            logits_to_keep=logits_to_keep,
            return_dict=bool(self.config.return_dict if return_dict is None else return_dict),
        )

    def count_images(self, input_ids: torch.Tensor, images: Images) -> list[int]:
        """Return how many of the images each row of ``input_ids`` [B, T] has."""
        counts: list[int] = (input_ids == self.config.image_ids[1]).sum(-1).tolist()
        return counts

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, *model_args: Any, **kwargs: Any) -> Any:
        """Load as the library does; a local folder's tokenizer tells the image tokens where its config does not."""
        from vlm_lora_omnilmm.tokenization import resolve_image_ids

        folder = Path(str(pretrained_model_name_or_path))
        if folder.is_dir() and isinstance(kwargs.get("config"), OmniLMMConfig | None):
            kwargs["config"] = resolve_image_ids(kwargs.get("config") or OmniLMMConfig.from_pretrained(folder), folder)
        return super().from_pretrained(pretrained_model_name_or_path, *model_args, **kwargs)

    @torch.no_grad()
    def initialize_weights(self) -> None:
        """Initialise what was not loaded."""
        super().initialize_weights()  # type: ignore[no-untyped-call]
        self.model.resampler.pos_embed.requires_grad_(False)  # the library's loader forgets it


AutoConfig.register(OmniLMMConfig.model_type, OmniLMMConfig, exist_ok=True)
AutoModelForCausalLM.register(OmniLMMConfig, OmniLMMForCausalLM, exist_ok=True)
