"""How large a published model is, for predictions of memory before a model is at hand."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from vlm_lora_plugin.contract.architecture import Architecture
from vlm_lora_plugin.vocabulary import ComponentName


@dataclass(frozen=True)
class ComponentSize:
    """How large one part of a model is, for predictions of memory before a model is at hand.

    Attributes:
        parameters: Elements in all, LoRA of the model's own included.
        fixed: Elements that stay frozen when the part is trained ``full``: computed tables, LoRA's scale.
        builtin_lora: Elements of the LoRA that the model itself carries.
        lora_per_rank: Elements that PEFT's LoRA adds for each unit of ``r`` on the part's own
            ``target_modules``: the sum of in and out features.
        largest: Elements of its largest tensor, which ZeRO-3 gathers in one piece.
        blocks: Layers that repeat.
        width: Channels between them.
        kept_per_position: Bytes that one block keeps for the backward pass for each position, in 16 bit and
            without checkpointing, where it learns.
        passed_per_position: The same where the block is frozen and gradients only pass through it.
        positions_per_image: Positions of its blocks for one image; 0: its positions are the row's tokens.
    """

    parameters: int
    fixed: int = 0
    builtin_lora: int = 0
    lora_per_rank: int = 0
    largest: int = 0
    blocks: int = 0
    width: int = 0
    kept_per_position: int = 0
    passed_per_position: int = 0
    positions_per_image: int = 0


@dataclass(frozen=True)
class ModelSize:
    """The sizes of a family's published model.

    Attributes:
        name: Which model that is: ``echo840/Monkey``.
        architecture: What it is made of.
        components: Each of its parts.
        vocabulary: Logits of one position.
        tokens_per_image: Tokens that one image takes of a row.
    """

    name: str
    architecture: Architecture
    components: Mapping[ComponentName, ComponentSize]
    vocabulary: int
    tokens_per_image: int
