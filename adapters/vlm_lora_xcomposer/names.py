"""Names of XComposer's parameters that rules and loaders speak about, and its architectures; torch is not imported."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vlm_lora_plugin.contract import Architecture, Component

if TYPE_CHECKING:
    from vlm_lora_xcomposer.modeling import XComposerForCausalLM

PLORA_NAME = r"model\.layers\.\d+\.(attention\.(wqkv|wo)|feed_forward\.w[123])\.Plora_[AB]\.weight"
"""Partial LoRA: weights of the published model that act on image tokens alone."""

SEPARATOR_NAME = r"plora_(glb|sub)_GN"
"""The vector between an image's two views, and the one at the end of each row of tokens (4KHD and 2.5)."""

POST_NORM_NAME = r"vit\.vision_tower\.vision_model\.post_layernorm\.(weight|bias)"
"""CLIP's last norm. Published checkpoints lack it, and no forward pass reaches it where there is one."""

VIDEO_NAME = r"video_mem_proj\.[02]\.(weight|bias)"
"""Projector of OmniLive's video memory; no forward pass of an image or a text reaches it."""

IGNORED_TENSORS = (r".*rotary_emb\.inv_freq", r".*\.embeddings\.position_ids")
"""Whole names of buffers of upstream's classes that some checkpoints carry; they follow from the config."""

VISION_PREFIX = "vit"
PROJECTOR_PREFIX = "vision_proj"
SEPARATOR_PREFIXES = ("plora_glb_GN", "plora_sub_GN")
VIDEO_PREFIX = "video_mem_proj"
LANGUAGE_PREFIXES = ("model.layers", "model.norm")
EMBEDDINGS_PREFIX = "model.tok_embeddings"
HEAD_PREFIX = "output"
VISION_BLOCKS = r"vit\.vision_tower\.vision_model\.encoder\.layers\.\d+"
LANGUAGE_BLOCKS = r"model\.layers\.\d+"
LORA_TARGETS = ("attention.wqkv", "attention.wo", "feed_forward.w1", "feed_forward.w2", "feed_forward.w3")
"""The linear layers that upstream's finetune.py puts LoRA on."""

COMPONENTS = (
    Component("vision", (VISION_PREFIX,), blocks=VISION_BLOCKS),
    Component("aligner", (PROJECTOR_PREFIX, *SEPARATOR_PREFIXES, VIDEO_PREFIX)),
    Component("language", LANGUAGE_PREFIXES, target_modules=LORA_TARGETS, blocks=LANGUAGE_BLOCKS),
    Component("embeddings", (EMBEDDINGS_PREFIX,)),
    Component("head", (HEAD_PREFIX,), target_modules=("output",)),
)


def architecture(model: XComposerForCausalLM) -> Architecture:
    """Return the architecture of a variant: 2 has no separators, and only OmniLive's base projects a video memory."""
    return architecture_of(
        has_separators=model.config.takes_crops, has_video_memory=model.config.video_memory_size is not None
    )


def architecture_of(*, has_separators: bool = True, has_video_memory: bool = False) -> Architecture:
    """Return the architecture of the models that have, or lack, these parts; 4KHD's by default."""
    aligner = (
        PROJECTOR_PREFIX,
        *(SEPARATOR_PREFIXES if has_separators else ()),
        *((VIDEO_PREFIX,) if has_video_memory else ()),
    )
    parts = tuple(Component("aligner", aligner) if part.name == "aligner" else part for part in COMPONENTS)
    return Architecture(
        parts,
        head=HEAD_PREFIX,
        fixed_tables=(POST_NORM_NAME, VIDEO_NAME),
        image_only=(VISION_PREFIX, PROJECTOR_PREFIX, SEPARATOR_NAME, PLORA_NAME),
    )
