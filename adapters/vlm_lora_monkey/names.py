"""Names that rules, loaders and the prompt speak about, and Monkey's architecture. Nothing here imports torch."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vlm_lora_plugin.contract import Architecture, Component

if TYPE_CHECKING:
    from torch import nn

END_OF_TEXT = "<|endoftext|>"
IMAGE_START, IMAGE_END, IMAGE_PAD = "<img>", "</img>", "<imgpad>"
GROUNDING_TAGS = ("<ref>", "</ref>", "<box>", "</box>", "<quad>", "</quad>")
SPECIAL_TOKENS = (
    END_OF_TEXT,
    "<|im_start|>",
    "<|im_end|>",
    *(f"<|extra_{number}|>" for number in range(205)),
    *GROUNDING_TAGS,
    IMAGE_START,
    IMAGE_END,
    IMAGE_PAD,
)
"""Monkey's special tokens, in the order of their ids (upstream's ``monkey_model/tokenization_qwen.py``)."""

_PARTS = r"(lora_scale|lora_a\.weight|lora_b\.weight)"

VISION_LORA_NAME = (
    r"transformer\.visual\.transformer\.resblocks\.\d+\.(attn\.in_proj_lora|attn\.out_proj_lora|mlp_lora)\.\d+\."
    + _PARTS
)
LANGUAGE_LORA_NAME = r"transformer\.h\.\d+\.(attn\.c_attn_lora|attn\.c_proj_lora|mlp\.w1_lora|mlp\.w2_lora)\." + _PARTS
LORA_NAME = f"({VISION_LORA_NAME})|({LANGUAGE_LORA_NAME})"
FIXED_TABLE_NAME = r"transformer\.visual\.attn_pool\.pos_embed"

IGNORED_TENSORS = (r".*attn\.masked_bias", r".*rotary_emb\.inv_freq")
"""Whole names of buffers of upstream's classes that some checkpoints carry; they follow from the config."""

TRUNK = "transformer"
EMBEDDINGS = "transformer.wte"

COMPONENTS = (
    Component(
        "vision",
        ("transformer.visual",),
        builtin_lora=VISION_LORA_NAME,
        blocks=r"transformer\.visual\.transformer\.resblocks\.\d+",
    ),
    Component("aligner", ("transformer.visual.attn_pool",), target_modules=("kv_proj", "attn.out_proj")),
    Component(
        "language",
        ("transformer.h", "transformer.ln_f"),
        # The layers that upstream's 3090 variant adapts.
        target_modules=("attn.c_attn", "attn.c_proj", "mlp.w1", "mlp.w2"),
        builtin_lora=LANGUAGE_LORA_NAME,
        blocks=r"transformer\.h\.\d+",
    ),
    Component("embeddings", (EMBEDDINGS,)),
    Component("head", ("lm_head",), target_modules=("lm_head",)),
)

ARCHITECTURE = Architecture(
    COMPONENTS,
    trunk=TRUNK,
    fixed_tables=(FIXED_TABLE_NAME,),
    image_only=(r"transformer\.visual",),
)


def architecture(model: nn.Module) -> Architecture:
    """Return the one architecture of every Monkey."""
    return ARCHITECTURE
