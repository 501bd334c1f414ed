"""Names that rules, loaders and the prompt speak about, and the architecture. Nothing here imports torch."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vlm_lora_plugin.contract import Architecture, Component

if TYPE_CHECKING:
    from torch import nn

IMAGE_PATCH = "<im_patch>"
IMAGE_START = "<im_start>"
IMAGE_END = "<im_end>"
IMAGE_TOKENS = (IMAGE_PATCH, IMAGE_START, IMAGE_END)
"""In the order in which upstream adds them to the tokenizer (``chat.py``)."""

GROUNDING_TOKENS = ("<box>", "</box>", "<ref>", "</ref>", "<quad>", "</quad>")
"""What upstream adds after them (``initialize_vision_tokenizer``)."""

FIXED_TABLE_NAME = r"model\.resampler\.pos_embed"

IGNORED_TENSORS = (r".*rotary_emb\.inv_freq", r".*attn\.k_bias")
"""Whole names of buffers that older libraries saved. They follow from the config; the key's bias is always zero."""

COMPONENTS = (
    Component(
        "vision",
        ("model.vision_tower",),
        target_modules=("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2"),
        blocks=r"model\.vision_tower\.blocks\.\d+",
    ),
    Component("aligner", ("model.resampler",), target_modules=("kv_proj", "attn.out_proj")),
    Component(
        "language",
        ("model.layers", "model.norm"),
        # The default of upstream's LoraArguments.
        target_modules=("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
        blocks=r"model\.layers\.\d+",
    ),
    Component("embeddings", ("model.embed_tokens",)),
    Component("head", ("lm_head",), target_modules=("lm_head",)),
)

ARCHITECTURE = Architecture(
    COMPONENTS,
    fixed_tables=(FIXED_TABLE_NAME,),
    image_only=(r"model\.vision_tower", r"model\.resampler"),
)


def architecture(model: nn.Module) -> Architecture:
    """Return the one architecture of every OmniLMM."""
    return ARCHITECTURE
