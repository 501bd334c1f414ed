"""The base class of the families' models: images and text in, next-token logits and the loss out.

A family's class says what is its own: its modules, how an image becomes tokens and where these stand. What
frameworks, planner and tests rely on stands here once; :mod:`vlm_lora_plugin.contract.model` names it.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, cast

import torch
from torch import nn
from transformers import GenerationMixin, PreTrainedConfig, PreTrainedModel
from transformers.cache_utils import Cache
from transformers.modeling_outputs import CausalLMOutputWithPast

from vlm_lora_plugin.errors import ModelError
from vlm_lora_plugin.models.generation import ImagesInPrompt
from vlm_lora_plugin.models.keyed_init import draw_builtin
from vlm_lora_plugin.models.outputs import head_outputs, refuse_contradicting_inputs
from vlm_lora_plugin.models.resampling import freeze_tables, init_own_weights
from vlm_lora_plugin.models.splicing import Blocks, find_image_blocks, mask_of_blocks, put_images
from vlm_lora_plugin.parallel.zero3 import zero3_configuration
from vlm_lora_plugin.patterns import Matcher

DEFAULT_SEED = 42

Images = torch.Tensor | Sequence[torch.Tensor]
"""The images of a batch in the order of their places: ``[N, 3, S, S]``, or N tensors ``[3, H_i, W_i]``."""


class ImageBlock(NamedTuple):
    """How an image stands in ``input_ids`` where all images have as many tokens.

    Attributes:
        start_id: The token in front of an image's places.
        end_id: The token behind them.
        span: Places of one image.
    """

    start_id: int
    end_id: int
    span: int


class ImageTextModel(PreTrainedModel, ImagesInPrompt, GenerationMixin):
    """A language model that sees: embeddings with images among them, a trunk of layers, a head.

    A subclass builds its modules in ``__init__`` and calls ``post_init`` at the end. It implements
    :meth:`image_features` and :attr:`image_block`, and :attr:`image_side` where its config has no ``image_size``. Where
    images differ in their number of tokens, it derives from :class:`~vlm_lora_plugin.models.ImageRunsModel`.

    Attributes:
        title: What people call the model, for messages.
        trunk_name: The module that is called with ``inputs_embeds`` [B, T, C], ``image_mask`` [B, T, 1] (None without
            images), ``attention_mask``, ``position_ids``, ``past_key_values``, ``use_cache``,
            ``output_hidden_states`` and, where ``returns_attentions``, ``output_attentions``.
        embeddings_name: The module that makes embeddings of token ids.
        head_name: The module that makes logits of the trunk's ``last_hidden_state``.
        returns_attentions: Whether the trunk can return attention maps.
        builtin_lora: Regular expressions for whole names of LoRA that the model carries itself; each set may be
            missing from a checkpoint, as a whole.
        ignored_tensors: Regular expressions for whole names of tensors that some checkpoints hold and no model needs.
        zeroed_without_images: Regular expressions for whole names of what upstream's forward pass calls for a batch
            without an image, and multiplies by zero; its gradient there is zero.
        fresh_lora_names: LoRA of ``builtin_lora`` that was drawn here instead of loaded from a checkpoint.
    """

    title: ClassVar[str]
    trunk_name: ClassVar[str] = "model"
    embeddings_name: ClassVar[str] = "model.embed_tokens"
    head_name: ClassVar[str] = "lm_head"
    returns_attentions: ClassVar[bool] = False
    builtin_lora: ClassVar[tuple[str, ...]] = ()
    ignored_tensors: ClassVar[tuple[str, ...]] = ()
    zeroed_without_images: ClassVar[tuple[str, ...]] = ()

    main_input_name = "input_ids"
    input_modalities = ["image", "text"]  # noqa: RUF012  the base class's own form
    supports_gradient_checkpointing = True
    accepts_loss_kwargs = True  # the Trainer then passes num_items_in_batch
    fresh_lora_names: tuple[str, ...] = ()
    _skip_keys_device_placement = ["past_key_values"]  # noqa: RUF012
    _supports_sdpa = True

    def post_init(self) -> None:
        """Finish the constructor, as the library asks for."""
        super().post_init()  # type: ignore[no-untyped-call]
        self.generation_config.use_cache = True  # published configs switch it off, for training
        self.after_loading()
        if self.builtin_lora:
            self.register_load_state_dict_post_hook(_forget_loaded_lora)  # type: ignore[no-untyped-call]

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
            input_ids: ``[B, T]`` integers. How the places of an image are marked is the family's: see
                :attr:`image_block`, or its own ``splice``. A row may hold no image, one or several.
            attention_mask: ``[B, S]``, true where there is a token; S counts the cached tokens too.
            pixel_values: The images, in the order of their places over the batch: ``[N, 3, S, S]`` floats, or N
                tensors ``[3, H_i, W_i]`` where the family takes several sizes. Only with the prompt when a cache
                is used.
            labels: ``[B, T]`` integers, -100 where nothing is supervised; shifted here.
            num_items_in_batch: What the summed loss is divided by; see
                :func:`vlm_lora_plugin.models.loss.causal_lm_loss`.
            position_ids: ``[B, T]``; the default is the trunk's.
            past_key_values: Cache of the tokens before these.
            inputs_embeds: ``[B, T, C]`` in place of ``input_ids``, for text alone.
            use_cache: Return a cache; the default is the config's, and off with labels or in training.
            output_attentions: Also return the attention maps of the language model, where ``returns_attentions``;
                else it must be false.
            output_hidden_states: Also return the hidden states before every layer and after the last norm.
            return_dict: False returns the outputs as a tuple; the default is the config's.
            logits_to_keep: Compute the logits of the last n positions, or of these positions; 0 is all.

        Returns:
            ``loss`` (fp32 scalar, with labels), ``logits`` [B, T, vocab_size], ``past_key_values``,
            ``hidden_states`` and ``attentions``.

        Raises:
            ModelError: The images do not fit the image places, or the inputs contradict each other.
        """
        refuse_contradicting_inputs(self.title, input_ids, inputs_embeds, pixel_values)
        if output_attentions and not self.returns_attentions:
            raise ModelError(f"{self.title} returns no attention maps", fix="Leave output_attentions out.")
        if use_cache is None:
            use_cache = self.config.use_cache and labels is None and not self.training
        if output_hidden_states is None:
            output_hidden_states = bool(self.config.output_hidden_states)
        is_prompt = past_key_values is None or past_key_values.get_seq_length() == 0
        embeds, image_mask = self._embed(input_ids, inputs_embeds, pixel_values, is_prompt=is_prompt)
        outputs = self.get_submodule(self.trunk_name)(
            inputs_embeds=embeds,
            image_mask=image_mask,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            use_cache=use_cache,
            output_hidden_states=output_hidden_states,
            **({"output_attentions": output_attentions} if self.returns_attentions else {}),
        )
        return head_outputs(
            outputs,
            self.get_submodule(self.head_name),
            labels=labels,
            num_items_in_batch=num_items_in_batch,
            logits_to_keep=logits_to_keep,
            return_dict=bool(self.config.return_dict if return_dict is None else return_dict),
        )

    def image_features(self, images: Images) -> torch.Tensor:
        """Return the tokens of images in the language model's width, in order: ``[N, span, C]``, or ``[sum, C]``."""
        raise NotImplementedError

    @property
    def image_side(self) -> int:
        """Side of a square image that the model takes, in pixels: by default the config's ``image_size``."""
        return cast(int, self.config.image_size)

    @property
    def image_block(self) -> ImageBlock:
        """How an image stands in ``input_ids``."""
        raise NotImplementedError

    def ids_of_image(self, height: int, width: int) -> list[int]:
        """Return the ids that stand for one image in a row, of the size in pixels that the processor gives it."""
        start_id, end_id, span = self.image_block
        place = next(token for token in range(span) if token not in (start_id, end_id))
        return [start_id, *[place] * span, end_id]

    def image_size(self, height: int, width: int, settings: Mapping[str, Any]) -> tuple[int, int]:
        """Return the ``(height, width)`` in pixels that the processor gives an image; ``data.processor`` may matter."""
        return self.image_side, self.image_side

    def largest_image_size(self, settings: Mapping[str, Any]) -> tuple[int, int]:
        """Return the ``(height, width)`` in pixels of an image that is cut into as many pieces as may be."""
        return self.image_side, self.image_side

    def count_images(self, input_ids: torch.Tensor, images: Images) -> list[int]:
        """Return how many of the images each row of ``input_ids`` [B, T] has."""
        counts: list[int] = (input_ids == self.image_block.start_id).sum(-1).tolist()
        return counts

    def splice(
        self, input_ids: torch.Tensor, embeds: torch.Tensor, images: Images | None
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Put the images of a prompt in their places, or call :meth:`without_images` where it has none.

        Args:
            input_ids: ``[B, T]``.
            embeds: Their embeddings ``[B, T, C]``; left as they are.
            images: At least one, or None.

        Returns:
            The embeddings with the images, and a mask ``[B, T, 1]`` that is true at their places; None without any.

        Raises:
            ModelError: The images do not fit the places.
        """
        block, number = self.image_block, 0 if images is None else len(images)
        places = find_image_blocks(input_ids, **block._asdict(), images=number)
        if places is None or images is None:
            return self.without_images(embeds), None
        return self.place_images(embeds, places, self.image_features(images)), mask_of_blocks(places, input_ids)

    def place_images(self, embeds: torch.Tensor, blocks: Blocks, tokens: torch.Tensor) -> torch.Tensor:
        """Return ``embeds`` [B, T, C] with the tokens of every image in its block."""
        return put_images(embeds, blocks, tokens)

    def without_images(self, embeds: torch.Tensor) -> torch.Tensor:
        """Return the embeddings ``[B, T, C]`` of a prompt without an image; where ranks must agree, a patch looks."""
        return embeds

    def features_of_grey(self, embeds: torch.Tensor) -> torch.Tensor:
        """Return the tokens of an image whose pixels are all the mean of the published normalisation."""
        return self.image_features(torch.zeros(1, 3, self.image_side, self.image_side, device=embeds.device))

    def text_dropout(self, embeds: torch.Tensor) -> torch.Tensor:
        """Return the text's embeddings ``[B, T, C]`` as they go on; images, which come after, do not pass here."""
        return embeds

    def _embed(
        self,
        input_ids: torch.Tensor | None,
        inputs_embeds: torch.Tensor | None,
        pixel_values: Images | None,
        *,
        is_prompt: bool,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Return the embeddings ``[B, T, C]`` with images in their places, and the mask of these ``[B, T, 1]``."""
        if input_ids is None:
            return self.text_dropout(cast(torch.Tensor, inputs_embeds)), None
        embeds = self.text_dropout(self.get_input_embeddings()(input_ids))
        images = pixel_values if pixel_values is not None and len(pixel_values) else None
        if images is None and not is_prompt:
            return embeds, None
        return self.splice(input_ids, embeds, images)

    def get_input_embeddings(self) -> nn.Module:
        """Return the token embeddings."""
        return self.get_submodule(self.embeddings_name)

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Replace the token embeddings."""
        owner, _, name = self.embeddings_name.rpartition(".")
        setattr(self.get_submodule(owner), name, value)

    def get_output_embeddings(self) -> nn.Module:
        """Return the head."""
        return self.get_submodule(self.head_name)

    def fill_buffers(self, device: str) -> None:
        """Fill the buffers of a model that was built on the meta device; by default it has none."""

    def after_loading(self) -> None:
        """Change what a folder's files said, such as settings of generation; by default nothing."""

    @classmethod
    def complete_config(cls, config: Any, folder: Path) -> PreTrainedConfig:
        """Return a folder's config with what else the folder tells: tensors or a tokenizer may say more."""
        return cast(PreTrainedConfig, config)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, *model_args: Any, **kwargs: Any) -> Any:
        """Load as the library does; what a local folder's config leaves open, :meth:`complete_config` adds.

        Raises:
            ModelError: ZeRO-3 is on, under which the library draws missing LoRA in a way of its own.
        """
        if cls.builtin_lora and zero3_configuration() is not None:
            raise ModelError(
                "Under ZeRO-3 the library would draw LoRA that the checkpoint lacks in a way of its own",
                why="It would not start from the same values as in one process.",
                fix="Load the model with vlm_lora_plugin.load(folder).",
            )
        folder = Path(str(pretrained_model_name_or_path))
        if folder.is_dir() and not isinstance(kwargs.get("config"), (str, os.PathLike)):
            config = kwargs.get("config") or cast(Any, cls.config_class).from_pretrained(folder)
            kwargs["config"] = cls.complete_config(config, folder)
        model = super().from_pretrained(pretrained_model_name_or_path, *model_args, **kwargs)
        whole = model[0] if isinstance(model, tuple) else model  # a tuple with output_loading_info
        whole.after_loading()
        return model

    @torch.no_grad()
    def initialize_weights(self) -> None:
        """Initialise what was not loaded; LoRA is drawn by name and recorded in ``fresh_lora_names``."""
        super().initialize_weights()  # type: ignore[no-untyped-call]
        is_lora = Matcher(self.builtin_lora)
        fresh = [
            name
            for name, parameter in self.named_parameters()
            if is_lora(name) and not getattr(parameter, "_is_hf_initialized", False)
        ]
        draw_builtin(dict(self.named_parameters()), fresh, DEFAULT_SEED)
        self.fresh_lora_names = tuple(fresh)
        freeze_tables(self)  # the library's loader forgets it

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)  # type: ignore[no-untyped-call]
        init_own_weights(module)


def _forget_loaded_lora(model: ImageTextModel, keys: Any) -> None:
    """Take LoRA that a state dict brought off ``fresh_lora_names``, so that nobody draws it anew."""
    missing = set()
    for key in keys.missing_keys:  # a wrapper's prefix may stand before a name
        parts = key.split(".")
        missing |= {".".join(parts[start:]) for start in range(len(parts))}
    model.fresh_lora_names = tuple(name for name in model.fresh_lora_names if name in missing)
