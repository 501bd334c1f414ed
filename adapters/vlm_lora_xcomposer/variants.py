"""What the three published architectures differ in. Nothing here imports torch."""

from __future__ import annotations

from dataclasses import dataclass

XCOMPOSER2 = "xcomposer2"
XCOMPOSER2_4KHD = "xcomposer2_4khd"
XCOMPOSER2_5 = "xcomposer2_5"


@dataclass(frozen=True)
class Variant:
    """The sizes that upstream keeps in the code beside each checkpoint.

    Attributes:
        image_size: Side of the square crop that the tower sees, in pixels.
        merge_size: Patches of a side that become one token: 2 makes one token of 2 x 2 patches.
        hd_num: Most crops of one image by default; None where an image is one square.
        wqkv_rank: Rank of the partial LoRA of ``attention.wqkv``; the other four layers have 256.
        wqkv_scale: What that LoRA's update is multiplied by, alpha / rank; the others have 1.
    """

    image_size: int
    merge_size: int
    hd_num: int | None
    wqkv_rank: int
    wqkv_scale: float


# 4KHD's code names no rank for wqkv and so gets its class's defaults, rank 8 and alpha 16. Version 2 was
# published in two sizes, 224 (7b) and 490 (vl-7b); its config names the side as `img_size`. hd_num: 16 is what
# upstream's finetuning guide gives for 4KHD (its chat takes 25). For 2.5 its script gives 18 together with a
# max_length of 16384; in the presets' 4096 tokens an image of any shape leaves room for text up to 8.
VARIANTS: dict[str, Variant] = {
    XCOMPOSER2_4KHD: Variant(336, 2, 16, 8, 2.0),
    XCOMPOSER2_5: Variant(560, 2, 8, 256, 1.0),
    XCOMPOSER2: Variant(490, 1, None, 256, 1.0),
}
"""By name, the one that a ``config.json`` alone stands for first."""

PLORA_RANK = 256
PLORA_DROPOUT = 0.05
