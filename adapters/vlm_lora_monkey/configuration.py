"""Monkey's configuration: the published ``config.json`` unchanged, plus a few optional keys for other sizes."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from transformers import PreTrainedConfig

from vlm_lora_monkey.names import LANGUAGE_LORA_NAME
from vlm_lora_plugin.errors import ModelError
from vlm_lora_plugin.models import tensor_names

PUBLISHED_VISUAL: dict[str, Any] = {
    "heads": 16,
    "image_size": 896,
    "image_start_id": 151857,
    "layers": 48,
    "lora_repeat_num": 4,
    "mlp_ratio": 4.9231,
    "output_dim": 4096,
    "patch_size": 14,
    "width": 1664,
}

# Qwen's tokenizer numbers <|endoftext|> 214 below <img>: three markers, 205 reserved ids, six reference tags.
END_OF_TEXT_BELOW_IMAGE_START = 214

POOL_HEAD_DIM = 128  # upstream: the resampler has output_dim // 128 heads


@dataclass(frozen=True)
class VisionSettings:
    """The ``visual`` part of the configuration, with the defaults that upstream keeps in its code.

    Attributes:
        image_size: Side of the square that every image is resized to, in pixels.
        patch_size: Side of one patch, in pixels.
        width: Channels of the tower.
        layers: Blocks of the tower.
        heads: Attention heads of a block.
        mlp_ratio: A block's MLP has ``int(width * mlp_ratio)`` hidden channels.
        output_dim: Channels of an image token; the language model's hidden size.
        image_start_id: Token ``<img>``; ``</img>`` and ``<imgpad>`` follow it.
        n_queries: Tokens that the resampler makes of one view; a square number.
        lora_repeat_num: LoRA sets in the tower; window number i uses set i.
        window_size: Side of one window, in pixels; the tower sees one window, or the shrunk image, at a time.
        lora_dropout: Dropout in front of every LoRA of the model.
    """

    image_size: int
    patch_size: int
    width: int
    layers: int
    heads: int
    mlp_ratio: float
    output_dim: int
    image_start_id: int
    n_queries: int = 256
    lora_repeat_num: int = 4
    window_size: int = 448
    lora_dropout: float = 0.05

    @property
    def windows_per_side(self) -> int:
        """Windows in a row and in a column of the image; they do not overlap, a rest is cut off."""
        return self.image_size // self.window_size

    @property
    def windows(self) -> int:
        """Windows of one image."""
        return self.windows_per_side**2

    @property
    def pool_heads(self) -> int:
        """Attention heads of the resampler."""
        return self.output_dim // POOL_HEAD_DIM

    @classmethod
    def from_mapping(cls, visual: Mapping[str, Any]) -> VisionSettings:
        """Read the ``visual`` object of a config; keys that do not describe the tower are left alone.

        Raises:
            ModelError: A key is missing, or the sizes do not fit together.
        """
        known = cls.__dataclass_fields__
        try:
            settings = cls(**{key: value for key, value in visual.items() if key in known})
        except TypeError as error:
            raise ModelError(f"The config's `visual` is incomplete: {error}") from None
        settings._check()
        return settings

    def _check(self) -> None:
        problem = None
        if self.windows < 1:
            problem = f"image_size {self.image_size} is smaller than window_size {self.window_size}"
        elif self.lora_repeat_num < self.windows:
            problem = f"lora_repeat_num {self.lora_repeat_num} is less than the {self.windows} windows of an image"
        elif self.width % self.heads:
            problem = f"width {self.width} does not divide by {self.heads} heads"
        elif self.pool_heads < 1 or self.output_dim % self.pool_heads:
            problem = f"output_dim {self.output_dim} is below {POOL_HEAD_DIM} or does not divide by its heads"
        elif round(self.n_queries**0.5) ** 2 != self.n_queries:
            problem = (
                f"n_queries {self.n_queries} is not a square number, and queries stand on a square grid "
                "(published: 256; upstream would round the grid's side down and fail later)"
            )
        if problem:
            raise ModelError(f"The config's `visual` is impossible: {problem}")


class MonkeyConfig(PreTrainedConfig):
    """Configuration of Monkey, as published (``echo840/Monkey``) or of other sizes.

    Keys beyond the published ones: ``llm_lora`` (the variant with LoRA inside the language model; None means
    that the checkpoint's tensors decide), and in ``visual`` ``n_queries``, ``window_size`` and
    ``lora_dropout``. ``auto_map`` is dropped: code beside a checkpoint is never used.
    """

    model_type = "monkey"
    keys_to_ignore_at_inference = ["past_key_values"]  # noqa: RUF012  the base class's own form

    vocab_size: int = 151936
    hidden_size: int = 4096
    num_hidden_layers: int = 32
    num_attention_heads: int = 32
    kv_channels: int = 128
    intermediate_size: int = 22016
    seq_length: int = 2048
    max_position_embeddings: int = 8192
    layer_norm_epsilon: float = 1e-6
    initializer_range: float = 0.02
    emb_dropout_prob: float = 0.0
    attn_dropout_prob: float = 0.0
    rotary_pct: float = 1.0
    rotary_emb_base: float = 10000
    use_dynamic_ntk: bool = True
    use_logn_attn: bool = True
    no_bias: bool = True
    use_cache: bool = True
    tie_word_embeddings: bool = False
    pad_token_id: int | None = None
    bos_token_id: int | None = None
    eos_token_id: int | list[int] | None = None
    llm_lora: bool | None = None
    visual: dict[str, Any] = field(default_factory=lambda: dict(PUBLISHED_VISUAL))

    def __post_init__(self, **kwargs: Any) -> None:
        kwargs.pop("auto_map", None)
        self.visual = dict(self.visual)
        end_of_text = self.image_start_id - END_OF_TEXT_BELOW_IMAGE_START
        if self.eos_token_id is None and end_of_text >= 0:
            self.eos_token_id = end_of_text
        if self.pad_token_id is None and isinstance(self.eos_token_id, int):
            self.pad_token_id = self.eos_token_id
        super().__post_init__(**kwargs)  # type: ignore[no-untyped-call]
        if self.kv_channels * self.num_attention_heads != self.hidden_size:
            raise ModelError(
                f"{self.num_attention_heads} heads of kv_channels {self.kv_channels} do not make "
                f"hidden_size {self.hidden_size}"
            )
        if self.vision.output_dim != self.hidden_size:
            raise ModelError(f"visual.output_dim {self.vision.output_dim} is not hidden_size {self.hidden_size}")
        if self.tie_word_embeddings:
            raise ModelError(
                "The config sets tie_word_embeddings, and a head that shares the embeddings' weight is not supported",
                why="No Monkey was published with one: rules and checkpoints name transformer.wte and lm_head apart.",
                fix="Set tie_word_embeddings to false; the checkpoint must then hold lm_head.weight.",
            )

    @property
    def vision(self) -> VisionSettings:
        """The ``visual`` part, typed and checked."""
        return VisionSettings.from_mapping(self.visual)

    @property
    def image_token_span(self) -> int:
        """Places between ``<img>`` and ``</img>`` that one image fills; 1280 at the published size."""
        vision = self.vision
        return vision.n_queries * (vision.windows + 1)

    @property
    def image_start_id(self) -> int:
        """Token id of ``<img>``."""
        return int(self.visual["image_start_id"])

    @property
    def image_end_id(self) -> int:
        """Token id of ``</img>``."""
        return self.image_start_id + 1

    @property
    def image_pad_id(self) -> int:
        """Token id of ``<imgpad>``, which fills an image's places in the prompt."""
        return self.image_start_id + 2


def resolve_variant(config: MonkeyConfig, folder: Path) -> MonkeyConfig:
    """Set ``llm_lora`` from the names of a folder's tensors where the config leaves it open.

    Raises:
        WeightsError: The folder has no weight files, or they cannot be read.
    """
    if config.llm_lora is None:
        config.llm_lora = any(re.fullmatch(LANGUAGE_LORA_NAME, name) for name in tensor_names(folder))
    return config
