"""OmniLMM's configuration: the published ``config.json`` unchanged, plus a few optional keys."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from transformers import MistralConfig

from vlm_lora_omnilmm.folder import MODEL_TYPE
from vlm_lora_plugin.errors import ModelError

PUBLISHED_TOWER_NAME = "eva02_enormous_patch14_clip_224.laion2b_plus"

# What timm's registry says of that tower. Upstream builds it by name, so that no config.json names these.
PUBLISHED_TOWER: dict[str, Any] = {
    "image_size": 224,
    "patch_size": 14,
    "embed_dim": 1792,
    "depth": 64,
    "num_heads": 16,
    "mlp_ratio": 15360 / 1792,
}

RESAMPLER_HEAD_DIM = 128  # upstream: the resampler has hidden_size // 128 heads


@dataclass(frozen=True)
class TowerSettings:
    """Sizes of the EVA-02 tower, in timm's words.

    Attributes:
        image_size: Side of the image that the stored positions belong to, in pixels; others are interpolated.
        patch_size: Side of one patch, in pixels.
        embed_dim: Channels.
        depth: Blocks of the tower as it was trained. The last one is not part of OmniLMM.
        num_heads: Attention heads of a block.
        mlp_ratio: A block's MLP has ``int(embed_dim * mlp_ratio)`` hidden channels.
    """

    image_size: int
    patch_size: int
    embed_dim: int
    depth: int
    num_heads: int
    mlp_ratio: float

    @classmethod
    def from_mapping(cls, tower: Mapping[str, Any]) -> TowerSettings:
        """Read the ``tower`` object of a config.

        Raises:
            ModelError: A key is missing or unknown, or the sizes do not fit together.
        """
        try:
            settings = cls(**tower)
        except TypeError as error:
            raise ModelError(f"The config's `tower` is wrong: {error}") from None
        if settings.depth < 2:
            raise ModelError(f"The config's `tower` is impossible: of depth {settings.depth} no block would be left")
        if settings.embed_dim % settings.num_heads:
            raise ModelError(
                "The config's `tower` is impossible: "
                f"embed_dim {settings.embed_dim} does not divide by {settings.num_heads} heads"
            )
        return settings


class OmniLMMConfig(MistralConfig):
    """Configuration of OmniLMM-12B as published (``openbmb/OmniLMM-12B``), or of other sizes.

    Keys beyond the published ones: ``tower`` (sizes that upstream hard-codes) and ``im_patch_token``,
    ``im_start_token``, ``im_end_token`` (token ids that upstream sets anew after every load; a folder's tokenizer
    tells them where they are missing). ``auto_map`` is dropped: code beside a checkpoint is never used.
    """

    model_type = MODEL_TYPE

    mm_vision_tower: str | None = PUBLISHED_TOWER_NAME
    use_mm_proj: bool = True
    mm_use_im_start_end: bool = True
    num_query: int = 64
    image_size: int = 448
    im_patch_token: int | None = None
    im_start_token: int | None = None
    im_end_token: int | None = None
    tower: dict[str, Any] = field(default_factory=lambda: dict(PUBLISHED_TOWER))

    def __post_init__(self, **kwargs: Any) -> None:
        kwargs.pop("auto_map", None)
        self.tower = dict(self.tower)
        if self.pad_token_id is None and isinstance(self.eos_token_id, int):
            self.pad_token_id = self.eos_token_id
        super().__post_init__(**kwargs)  # type: ignore[no-untyped-call]
        TowerSettings.from_mapping(self.tower)
        problem = None
        if round(self.num_query**0.5) ** 2 != self.num_query:
            problem = f"num_query {self.num_query} is not a square number"
        elif self.resampler_heads < 1 or self.hidden_size % self.resampler_heads:
            problem = f"hidden_size {self.hidden_size} is below {RESAMPLER_HEAD_DIM} or does not divide by its heads"
        elif not self.mm_use_im_start_end:
            problem = "mm_use_im_start_end is false, which upstream does not implement either"
        elif self.tie_word_embeddings:
            problem = "it sets tie_word_embeddings, but OmniLMM was published with a head of its own"
        if problem:
            raise ModelError(f"The config is impossible: {problem}")

    @property
    def vision(self) -> TowerSettings:
        """The ``tower`` part, typed and checked."""
        return TowerSettings.from_mapping(self.tower)

    @property
    def resampler_heads(self) -> int:
        """Attention heads of the resampler."""
        return self.hidden_size // RESAMPLER_HEAD_DIM

    @property
    def image_ids(self) -> tuple[int, int, int]:
        """Token ids of ``<im_patch>``, ``<im_start>`` and ``<im_end>``.

        Raises:
            ModelError: They are not known.
        """
        if self.im_patch_token is None or self.im_start_token is None or self.im_end_token is None:
            raise ModelError(
                "The config does not say which tokens mark an image",
                why="The published config.json lacks them; a folder's tokenizer tells them when it is loaded.",
                fix="Load the model with vlm_lora_plugin.load, or set im_patch_token, im_start_token and im_end_token.",
            )
        return self.im_patch_token, self.im_start_token, self.im_end_token
