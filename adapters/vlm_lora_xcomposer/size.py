"""The published XComposer2-4KHD in numbers, for settings that are chosen before a model is at hand.

Counts are those of ``internlm/internlm-xcomposer2-4khd-7b``, which a ``config.json`` alone stands for. Versions 2 and
2.5 differ from it by about one percent of the parameters, and see an image in fewer pieces: version 2 as 1,225 tokens,
2.5 as at most 9 views. Their parameters are counted once a model is at hand; for activations these figures stand in,
which are too high for them where the tower learns.

Bytes kept for the backward pass are those of one block of this package at its published size: the tensors that
autograd saves in training under bf16 autocast, each storage once, without parameters and their 16-bit copies. Tower
and projector are counted trained in full, the language model with LoRA in fp32 on top of its partial LoRA. Tests count
all of them again.
"""

from __future__ import annotations

from vlm_lora_plugin.contract import ComponentSize, ModelSize
from vlm_lora_xcomposer.names import architecture_of

SIZE = ModelSize(
    name="internlm/internlm-xcomposer2-4khd-7b",
    architecture=architecture_of(),
    components={
        "vision": ComponentSize(
            parameters=303_505_408,
            largest=4_194_304,
            blocks=24,
            width=1024,
            kept_per_position=41_040,
            positions_per_image=9809,  # 16 crops and the global view, each of 24 x 24 patches and the class token
        ),
        "aligner": ComponentSize(
            parameters=33_570_816,
            largest=16_777_216,
            blocks=1,  # the projector, once an image
            width=4096,
            kept_per_position=24_576,
            passed_per_position=24_576,
            positions_per_image=2509,
        ),
        "language": ComponentSize(
            parameters=7_502_303_232,
            lora_per_rank=2_359_296,
            largest=58_720_256,
            blocks=32,
            width=4096,
            kept_per_position=460_578,
            passed_per_position=212_114,
        ),
        "embeddings": ComponentSize(parameters=379_060_224, largest=379_060_224),
        "head": ComponentSize(parameters=379_060_224, lora_per_rank=96_640, largest=379_060_224),
    },
    vocabulary=92_544,
    # 4 x 4 crops of 12 x 12 tokens and the global view, each row of tokens with its end, and what separates the two.
    tokens_per_image=2509,
)
