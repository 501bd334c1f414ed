"""Monkey: pixels and tokens in, next-token logits out.

Parameter names and shapes are those of the published checkpoints. This forward is the reference: what makes
it leaner lives in :mod:`vlm_lora_monkey.forward`.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, GenerationMixin, PreTrainedModel
from transformers import initialization as init
from transformers.cache_utils import Cache, DynamicCache
from transformers.masking_utils import create_causal_mask
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast

from vlm_lora_monkey.configuration import MonkeyConfig, resolve_variant
from vlm_lora_monkey.language import MonkeyBlock, log_n_scale, ntk_factor, rotary_of
from vlm_lora_monkey.names import LORA_NAME
from vlm_lora_monkey.visual import MonkeyVisionTower
from vlm_lora_plugin.errors import ModelError
from vlm_lora_plugin.models import (
    ImagesInPrompt,
    RMSNorm,
    draw_builtin,
    find_image_blocks,
    head_outputs,
    init_resampler,
    positions_in_row,
    put_images,
    refuse_contradicting_inputs,
    zero3_configuration,
)

DEFAULT_SEED = 42


class MonkeyModel(nn.Module):
    """Embeddings, vision tower and the layers of the language model."""

    def __init__(self, config: MonkeyConfig) -> None:
        super().__init__()
        self.config = config
        self.wte: nn.Module = nn.Embedding(config.vocab_size, config.hidden_size)
        self.drop = nn.Dropout(config.emb_dropout_prob)
        self.h = nn.ModuleList(MonkeyBlock(config, index) for index in range(config.num_hidden_layers))
        self.ln_f = RMSNorm(config.hidden_size, config.layer_norm_epsilon)
        self.visual = MonkeyVisionTower(config.vision)

    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        pixel_values: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: torch.Tensor | None = None,
        use_cache: bool | None = None,
        output_hidden_states: bool = False,
    ) -> BaseModelOutputWithPast:
        """Return the last hidden states ``[B, T, C]`` (after ``ln_f``) and the cache.

        Arguments as in :meth:`MonkeyForCausalLM.forward`.
        """
        if use_cache and past_key_values is None:
            past_key_values = DynamicCache()
        seen = 0 if past_key_values is None else past_key_values.get_seq_length()
        hidden = self._embed(input_ids, inputs_embeds, pixel_values, is_prompt=seen == 0)
        mask = create_causal_mask(
            config=self.config,
            inputs_embeds=hidden,
            attention_mask=attention_mask,
            past_key_values=past_key_values,
            position_ids=position_ids,
        )
        if position_ids is None:
            position_ids = positions_in_row(attention_mask, seen, hidden)
        rotary = rotary_of(
            position_ids,
            int(self.config.kv_channels * self.config.rotary_pct),
            self.config.rotary_emb_base,
            self._ntk_factor(hidden.shape[1], seen, past_key_values),
        )
        log_n = None
        if self.config.use_logn_attn and not self.training:
            log_n = log_n_scale(position_ids, self.config.seq_length)
        states = []
        for block in self.h:
            states.append(hidden)
            hidden = block(hidden, rotary, log_n=log_n, mask=mask, past_key_values=past_key_values)
        hidden = self.ln_f(hidden)
        return BaseModelOutputWithPast(
            last_hidden_state=hidden,
            past_key_values=past_key_values,
            hidden_states=cast(tuple[torch.FloatTensor, ...], (*states, hidden)) if output_hidden_states else None,
        )

    def _embed(
        self,
        input_ids: torch.Tensor | None,
        inputs_embeds: torch.Tensor | None,
        pixel_values: torch.Tensor | None,
        *,
        is_prompt: bool,
    ) -> torch.Tensor:
        refuse_contradicting_inputs("Monkey", input_ids, inputs_embeds, pixel_values)
        if input_ids is None:
            return cast(torch.Tensor, self.drop(inputs_embeds))
        embeds = self.drop(self.wte(input_ids))  # image tokens, which come after, are not dropped
        if not is_prompt and pixel_values is None:
            return cast(torch.Tensor, embeds)
        blocks = find_image_blocks(
            input_ids,
            start_id=self.config.image_start_id,
            end_id=self.config.image_end_id,
            span=self.config.image_token_span,
            images=0 if pixel_values is None else len(pixel_values),
        )
        if blocks is None or pixel_values is None:
            return self.without_images(embeds)
        return put_images(embeds, blocks, self.visual.encode(_checked(pixel_values, self.config)))

    def without_images(self, embeds: torch.Tensor) -> torch.Tensor:
        """Return the embeddings ``[B, T, C]`` of a prompt without an image; where ranks must agree, a patch looks."""
        return embeds

    def _ntk_factor(self, length: int, seen: int, cache: Cache | None) -> float:
        """Return the factor of this forward: 1 in training, else by the prompt's length.

        A cache keeps its prompt's factor, as its keys are rotated with it; so a generation is consistent in
        itself, and equal to one without cache as long as it stays below the next threshold.
        """
        if self.training or not self.config.use_dynamic_ntk:
            return 1.0
        factor = ntk_factor(length + seen, self.config.seq_length)
        if cache is None:
            return factor
        if seen == 0:
            cache.ntk_factor = factor  # type: ignore[attr-defined]
        return cast(float, getattr(cache, "ntk_factor", factor))


class MonkeyForCausalLM(PreTrainedModel, ImagesInPrompt, GenerationMixin):
    """The Monkey model with its language-modelling head.

    Attributes:
        fresh_lora_names: Built-in LoRA parameters that were drawn here instead of loaded from a checkpoint.
    """

    config_class = MonkeyConfig
    config: MonkeyConfig
    base_model_prefix = "transformer"
    main_input_name = "input_ids"
    input_modalities = ["image", "text"]  # noqa: RUF012
    supports_gradient_checkpointing = True
    accepts_loss_kwargs = True  # the Trainer then passes num_items_in_batch
    fresh_lora_names: tuple[str, ...] = ()
    _no_split_modules = ["MonkeyBlock", "VisualBlock"]  # noqa: RUF012  the base class's own form
    _skip_keys_device_placement = ["past_key_values"]  # noqa: RUF012
    _keys_to_ignore_on_load_unexpected = [r"attn\.masked_bias$", r"rotary_emb\.inv_freq$"]  # noqa: RUF012
    _supports_sdpa = True

    def __init__(self, config: MonkeyConfig) -> None:
        super().__init__(config)
        self.transformer = MonkeyModel(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()  # type: ignore[no-untyped-call]
        self.generation_config.use_cache = True  # published configs switch it off, for training
        self.register_load_state_dict_post_hook(_forget_loaded_lora)  # type: ignore[no-untyped-call]

    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        pixel_values: torch.Tensor | None = None,
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
            input_ids: ``[B, T]`` integers. An image is ``<img>``, ``config.image_token_span`` places of any
                ids, ``</img>``; a row may hold none, one or several.
            attention_mask: ``[B, S]``, true where there is a token, padding on either side; S counts the
                cached tokens too.
            pixel_values: ``[N, 3, image_size, image_size]`` floats: the images, in the order of their places
                over the batch. Only with the prompt when a cache is used.
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
            raise ModelError("Monkey computes no attention maps", fix="Leave output_attentions out.")
        if use_cache is None:
            use_cache = self.config.use_cache and labels is None and not self.training
        if output_hidden_states is None:
            output_hidden_states = bool(self.config.output_hidden_states)
        outputs = self.transformer(
            input_ids=input_ids,
            attention_mask=attention_mask,
            pixel_values=pixel_values,
            position_ids=position_ids,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            use_cache=use_cache,
            output_hidden_states=output_hidden_states,
        )
        return head_outputs(
            outputs,
            self.lm_head,
            labels=labels,
            num_items_in_batch=num_items_in_batch,
            logits_to_keep=logits_to_keep,
            return_dict=bool(self.config.return_dict if return_dict is None else return_dict),
        )

    def count_images(self, input_ids: torch.Tensor, images: torch.Tensor) -> list[int]:
        """Return how many of the images each row of ``input_ids`` [B, T] has."""
        counts: list[int] = (input_ids == self.config.image_start_id).sum(-1).tolist()
        return counts

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, *model_args: Any, **kwargs: Any) -> Any:
        """Load as the library does; a local folder's tensors tell the variant where its config does not.

        Raises:
            ModelError: ZeRO-3 is on, under which the library draws missing weights in a way of its own.
        """
        if zero3_configuration() is not None:
            raise ModelError(
                "Under ZeRO-3 the library would draw LoRA that the checkpoint lacks in a way of its own",
                why="It would not start from the same values as in one process.",
                fix="Load the model with vlm_lora_plugin.load(folder).",
            )
        folder = Path(str(pretrained_model_name_or_path))
        if folder.is_dir() and not isinstance(kwargs.get("config"), (str, os.PathLike)):
            config = kwargs.get("config") or MonkeyConfig.from_pretrained(folder)
            kwargs["config"] = resolve_variant(config, folder)
        return super().from_pretrained(pretrained_model_name_or_path, *model_args, **kwargs)

    def get_input_embeddings(self) -> nn.Module:
        """Return the token embeddings."""
        return self.transformer.wte

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Replace the token embeddings."""
        self.transformer.wte = value

    @torch.no_grad()
    def initialize_weights(self) -> None:
        """Initialise what was not loaded; LoRA is drawn by name and recorded in ``fresh_lora_names``."""
        super().initialize_weights()  # type: ignore[no-untyped-call]
        fresh = [
            name
            for name, parameter in self.named_parameters()
            if re.fullmatch(LORA_NAME, name) and not getattr(parameter, "_is_hf_initialized", False)
        ]
        draw_builtin(dict(self.named_parameters()), fresh, DEFAULT_SEED)
        self.fresh_lora_names = tuple(fresh)
        self.transformer.visual.attn_pool.pos_embed.requires_grad_(False)  # the library's loader forgets it

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)  # type: ignore[no-untyped-call]
        init_resampler(module)
        if isinstance(module, MonkeyVisionTower):
            init.normal_(module.positional_embedding, std=module.settings.width**-0.5)
            init.normal_(module.proj, std=module.settings.output_dim**-0.5)


def _forget_loaded_lora(model: MonkeyForCausalLM, keys: Any) -> None:
    """Take LoRA that a state dict brought off ``fresh_lora_names``, so that nobody draws it anew."""
    missing = {key[key.find("transformer.") :] for key in keys.missing_keys}  # a wrapper's prefix may stand before
    model.fresh_lora_names = tuple(name for name in model.fresh_lora_names if name in missing)


def _checked(pixel_values: torch.Tensor, config: MonkeyConfig) -> torch.Tensor:
    """Return the images as they are, if they have the size that the tower takes."""
    size = config.vision.image_size
    if pixel_values.shape[1:] != (3, size, size):
        raise ModelError(
            f"pixel_values has the shape {tuple(pixel_values.shape)}, not [N, 3, {size}, {size}]",
            fix="Use the model's own processor.",
        )
    return pixel_values


AutoConfig.register(MonkeyConfig.model_type, MonkeyConfig, exist_ok=True)
AutoModelForCausalLM.register(MonkeyConfig, MonkeyForCausalLM, exist_ok=True)
