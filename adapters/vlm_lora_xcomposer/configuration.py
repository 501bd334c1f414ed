"""XComposer's configuration: the published ``config.json`` unchanged, plus optional keys for other sizes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from transformers import PreTrainedConfig

from vlm_lora_plugin.errors import ModelError, nearest
from vlm_lora_xcomposer.variants import PLORA_DROPOUT, PLORA_RANK, VARIANTS, XCOMPOSER2, XCOMPOSER2_4KHD

if TYPE_CHECKING:
    from transformers import CLIPVisionConfig

# CLIP ViT-L/14, whose geometry upstream takes from openai/clip-vit-large-patch14-336.
PUBLISHED_VISION: dict[str, Any] = {
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "patch_size": 14,
    "hidden_act": "quick_gelu",
    "layer_norm_eps": 1e-5,
    "attention_dropout": 0.0,
}

PARTS: dict[str, Any] = {
    "vision": {key: type(value) for key, value in {**PUBLISHED_VISION, "image_size": 0}.items()},
    "plora": {"wqkv": tuple[float, ...], "other": tuple[float, ...], "dropout": float},
}
"""What the mappings inside a config hold, by key."""

# Ids counted from the end of the vocabulary: [UNUSED_TOKEN_145] ends a turn, [UNUSED_TOKEN_142] occurs in no prompt.
TURN_END_FROM_END = 2
IMAGE_TOKEN_FROM_END = 5


@dataclass(frozen=True)
class PLoraSettings:
    """Rank and scale of the partial LoRA of one linear layer, and the dropout in front of it in training."""

    r: int
    alpha: float
    dropout: float

    @property
    def scale(self) -> float:
        """What the update is multiplied by."""
        return self.alpha / self.r


class XComposerConfig(PreTrainedConfig):
    """Configuration of InternLM-XComposer 2, 2-4KHD and 2.5, as published or of other sizes.

    Keys beyond the published ones, all optional:

    - ``variant``: one of :data:`~vlm_lora_xcomposer.variants.VARIANTS`. Without it ``img_size`` says version 2,
      else it is 4KHD; a folder's tensors decide before that (see :mod:`vlm_lora_xcomposer.shapes`).
    - ``vision``: keys of a CLIP vision tower, ``image_size`` included, laid over the published ones.
    - ``plora``: ``{"wqkv": [r, alpha], "other": [r, alpha], "dropout": 0.05}``, laid over the variant's.
    - ``projector_size``: width between the projector's two layers, ``hidden_size`` by default.
    - ``post_layernorm``: whether the tower holds CLIP's last norm, which nothing uses.
    - ``video_memory_size``: input width of OmniLive's ``video_mem_proj``, which nothing here uses; None: absent.
    - ``hd_num``: most crops of one image where a recipe says nothing else.
    - ``image_token_id``: marks the places of image tokens in ``input_ids``.

    ``auto_map``, ``max_length`` and ``attn_implementation`` of published configs are dropped: code beside a
    checkpoint is never used, the recipe says how long an example may be, and attention is chosen at load.
    """

    model_type = "internlmxcomposer2"
    keys_to_ignore_at_inference = ["past_key_values"]  # noqa: RUF012  the base class's own form

    vocab_size: int = 92544
    hidden_size: int = 4096
    intermediate_size: int = 14336
    num_hidden_layers: int = 32
    num_attention_heads: int = 32
    num_key_value_heads: int = 8
    hidden_act: str = "silu"
    max_position_embeddings: int = 32768
    initializer_range: float = 0.02
    rms_norm_eps: float = 1e-5
    bias: bool = False
    rope_theta: float = 1000000
    rope_scaling: dict[str, Any] | None = None
    use_cache: bool = True
    tie_word_embeddings: bool = False
    pad_token_id: int | None = 2
    bos_token_id: int | None = 1
    eos_token_id: int | list[int] | None = 2
    img_size: int | None = None
    variant: str | None = None
    vision: dict[str, Any] = field(default_factory=dict)
    plora: dict[str, Any] = field(default_factory=dict)
    projector_size: int | None = None
    post_layernorm: bool = False
    video_memory_size: int | None = None
    hd_num: int | None = None
    image_token_id: int | None = None

    def __post_init__(self, **kwargs: Any) -> None:
        for key in ("auto_map", "max_length", "attn_implementation"):
            kwargs.pop(key, None)
        if self.variant is None:
            self.variant = XCOMPOSER2 if self.img_size is not None else XCOMPOSER2_4KHD
        if self.variant not in VARIANTS:
            raise ModelError(f"XComposer has no variant '{self.variant}'", fix=nearest(self.variant, list(VARIANTS)))
        published = VARIANTS[self.variant]
        self.vision = {**PUBLISHED_VISION, "image_size": self.img_size or published.image_size, **self.vision}
        self.plora = {
            "wqkv": [published.wqkv_rank, published.wqkv_rank * published.wqkv_scale],
            "other": [PLORA_RANK, PLORA_RANK],
            "dropout": PLORA_DROPOUT,
            **self.plora,
        }
        if self.projector_size is None:
            self.projector_size = self.hidden_size
        if self.hd_num is None:
            self.hd_num = published.hd_num
        if self.image_token_id is None:
            self.image_token_id = self.vocab_size - IMAGE_TOKEN_FROM_END
        super().__post_init__(**kwargs)  # type: ignore[no-untyped-call]
        self._check()

    def _check(self) -> None:
        problem = None
        heads, groups = self.num_attention_heads, self.num_key_value_heads
        if self.hidden_size % heads or heads % groups:
            problem = f"hidden_size {self.hidden_size} does not divide by {heads} heads, or those by {groups}"
        elif self.image_size % (self.patch_size * self.merge_size):
            problem = f"image_size {self.image_size} does not divide by {self.merge_size} patches of {self.patch_size}"
        elif (self.rope_scaling or {}).get("type", "linear") not in ("linear", "dynamic"):
            problem = f"rope_scaling {self.rope_scaling} is neither linear nor dynamic"
        short = [name for name in ("wqkv", "other") if len(self.plora[name]) != 2 or not self.plora[name][0] >= 1]
        if short:
            problem = f"plora.{short[0]} is {self.plora[short[0]]}, not [rank, alpha]"
        if problem:
            raise ModelError(f"The config is impossible: {problem}")
        try:
            self.clip  # noqa: B018  the library checks it when it is made
        except Exception as error:
            lines = [line.strip() for line in str(error).splitlines() if line.strip()]
            raise ModelError(f"The config's `vision` is impossible: {lines[-1] if lines else error!r}") from None
        if self.tie_word_embeddings:
            raise ModelError(
                "The config sets tie_word_embeddings",
                why="No XComposer was published with a head that shares the embeddings' weight.",
                fix="Set it to false; the checkpoint then holds output.weight.",
            )

    @property
    def clip(self) -> CLIPVisionConfig:
        """The vision tower's configuration, as the library's own."""
        # Not at the top: it would load transformers' auto classes, and those this package, before this class exists.
        from transformers import CLIPVisionConfig

        return CLIPVisionConfig(**self.vision)

    @property
    def image_size(self) -> int:
        """Side of one crop in pixels; version 2 sees an image as one such square."""
        return int(self.vision["image_size"])

    @property
    def patch_size(self) -> int:
        """Side of one patch in pixels."""
        return int(self.vision["patch_size"])

    @property
    def merge_size(self) -> int:
        """Patches of a side that become one token, 1 or 2."""
        return VARIANTS[str(self.variant)].merge_size

    @property
    def takes_crops(self) -> bool:
        """Whether an image is seen as a global view and crops, with separators, rather than as one square."""
        return VARIANTS[str(self.variant)].hd_num is not None

    @property
    def tokens_per_side(self) -> int:
        """Tokens in a row and in a column of one crop: 12 for 4KHD, 20 for 2.5, 16 or 35 for version 2."""
        return self.image_size // (self.patch_size * self.merge_size)

    @property
    def image_token_width(self) -> int:
        """Channels of one image token before the projector."""
        return int(self.vision["hidden_size"]) * self.merge_size**2

    @property
    def turn_end_id(self) -> int:
        """Token id of ``[UNUSED_TOKEN_145]``, the end of a turn; ``[UNUSED_TOKEN_146]``, its start, is the next."""
        return self.vocab_size - TURN_END_FROM_END

    def plora_of(self, layer: str) -> PLoraSettings:
        """Return rank, alpha and dropout of the partial LoRA of ``"wqkv"``, or of any of the other four layers."""
        settings: Mapping[str, Any] = self.plora
        r, alpha = settings["wqkv" if layer == "wqkv" else "other"]
        return PLoraSettings(int(r), float(alpha), float(settings["dropout"]))
