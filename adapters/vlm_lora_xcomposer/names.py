"""Names of XComposer's parameters that rules and loaders speak about. Nothing here imports torch."""

from __future__ import annotations

PLORA_NAME = r"model\.layers\.\d+\.(attention\.(wqkv|wo)|feed_forward\.w[123])\.Plora_[AB]\.weight"
"""Partial LoRA: weights of the published model that act on image tokens alone."""

SEPARATOR_NAME = r"plora_(glb|sub)_GN"
"""The vector between an image's two views, and the one at the end of each row of tokens (4KHD and 2.5)."""

POST_NORM_NAME = r"vit\.vision_tower\.vision_model\.post_layernorm\.(weight|bias)"
"""CLIP's last norm. Published checkpoints lack it, and no forward pass reaches it where there is one."""

VIDEO_NAME = r"video_mem_proj\.[02]\.(weight|bias)"
"""Projector of OmniLive's video memory; no forward pass of an image or a text reaches it."""

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
