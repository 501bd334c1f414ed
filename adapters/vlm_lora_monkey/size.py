"""The published Monkey in numbers, for settings that are chosen before a model is at hand.

Counts are those of ``echo840/Monkey``'s config. Bytes kept for the backward pass are those of one block of this
package at its published size: the tensors that autograd saves in training under bf16 autocast, LoRA in fp32, each
storage once, without parameters and their 16-bit copies. Tests count all of them again.
"""

from __future__ import annotations

from vlm_lora_monkey.names import ARCHITECTURE
from vlm_lora_plugin.contract import ComponentSize, ModelSize

SIZE = ModelSize(
    name="echo840/Monkey",
    architecture=ARCHITECTURE,
    components={
        "vision": ComponentSize(
            parameters=1_910_674_752,
            builtin_lora=51_118_656,
            largest=16_777_216,
            blocks=48,
            width=1664,
            kept_per_position=56_648,
            # Four windows of 32 x 32 patches; the global view keeps nothing where LoRA alone learns.
            positions_per_image=4096,
        ),
        "aligner": ComponentSize(
            parameters=76_054_528,
            fixed=1_048_576,
            lora_per_rank=13_952,
            largest=50_331_648,
            blocks=1,  # the resampler, once a view, the global one included
            width=4096,
            kept_per_position=44_296,
            passed_per_position=44_296,
            positions_per_image=5120,
        ),
        "language": ComponentSize(
            parameters=6_476_664_832,
            lora_per_rank=1_753_088,
            largest=50_331_648,
            blocks=32,
            width=4096,
            kept_per_position=247_560,
            passed_per_position=149_128,
        ),
        "embeddings": ComponentSize(parameters=622_329_856, largest=622_329_856),
        "head": ComponentSize(parameters=622_329_856, lora_per_rank=156_032, largest=622_329_856),
    },
    vocabulary=151_936,
    tokens_per_image=1280,
)
