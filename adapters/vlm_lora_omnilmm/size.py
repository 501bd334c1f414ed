"""The published OmniLMM-12B in numbers, for settings that are chosen before a model is at hand.

Counts are those of ``openbmb/OmniLMM-12B`` with a vocabulary of 32,009 tokens. Bytes kept for the backward pass are
those of one block of this package at its published size: the tensors that autograd saves in training under bf16
autocast, each storage once, without parameters and their 16-bit copies. Tower and resampler are counted trained in
full, as the presets train them (LoRA on the tower keeps twice as much), the language model with LoRA in fp32. Tests
count all of them again.
"""

from __future__ import annotations

from vlm_lora_omnilmm.names import ARCHITECTURE
from vlm_lora_plugin.contract import ComponentSize, ModelSize

SIZE = ModelSize(
    name="openbmb/OmniLMM-12B",
    architecture=ARCHITECTURE,
    components={
        "vision": ComponentSize(
            parameters=4_280_795_904,
            lora_per_rank=2_838_528,
            largest=27_525_120,
            blocks=63,
            width=1792,
            kept_per_position=90_192,
            positions_per_image=1025,  # 32 x 32 patches and the class token
        ),
        "aligner": ComponentSize(
            parameters=91_791_360,
            fixed=262_144,
            lora_per_rank=14_080,
            largest=50_331_648,
            blocks=1,  # the resampler, once an image
            width=4096,
            kept_per_position=44_552,
            passed_per_position=44_552,
            positions_per_image=1024,
        ),
        "language": ComponentSize(
            parameters=6_979_588_096,
            lora_per_rank=589_824,
            largest=58_720_256,
            blocks=32,
            width=4096,
            kept_per_position=214_024,
            passed_per_position=139_912,
        ),
        "embeddings": ComponentSize(parameters=131_108_864, largest=131_108_864),
        "head": ComponentSize(parameters=131_108_864, lora_per_rank=36_105, largest=131_108_864),
    },
    vocabulary=32_009,
    tokens_per_image=66,
)
