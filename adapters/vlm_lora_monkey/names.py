"""Names of Monkey's parameters that rules and loaders speak about. Nothing here imports torch."""

from __future__ import annotations

_PARTS = r"(lora_scale|lora_a\.weight|lora_b\.weight)"

VISION_LORA_NAME = (
    r"transformer\.visual\.transformer\.resblocks\.\d+\.(attn\.in_proj_lora|attn\.out_proj_lora|mlp_lora)\.\d+\."
    + _PARTS
)
LANGUAGE_LORA_NAME = r"transformer\.h\.\d+\.(attn\.c_attn_lora|attn\.c_proj_lora|mlp\.w1_lora|mlp\.w2_lora)\." + _PARTS
LORA_NAME = f"({VISION_LORA_NAME})|({LANGUAGE_LORA_NAME})"
FIXED_TABLE_NAME = r"transformer\.visual\.attn_pool\.pos_embed"
