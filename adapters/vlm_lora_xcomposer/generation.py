"""What generation needs beside the forward pass: where an answer ends, and images of repeated rows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from vlm_lora_xcomposer.images import number_of_image_tokens

if TYPE_CHECKING:
    import torch
    from transformers import GenerationConfig

    from vlm_lora_xcomposer.configuration import XComposerConfig


def stop_at_turn_end(generation_config: GenerationConfig, config: XComposerConfig) -> None:
    """Let an answer end where its turn does; upstream's chat passes the same two ids, published files only one."""
    known = generation_config.eos_token_id
    ends = [] if known is None else known if isinstance(known, list) else [known]
    if config.turn_end_id not in ends:
        generation_config.eos_token_id = [*ends, config.turn_end_id]


def images_per_copy(
    input_ids: torch.Tensor, images: Sequence[torch.Tensor], config: XComposerConfig, copies: int
) -> list[torch.Tensor]:
    """Return the images of a batch whose rows are each repeated ``copies`` times, one after the other.

    Args:
        input_ids: ``[B, T]`` before the repetition.
        images: The transformed images of the batch, in order of appearance.
        config: Gives the id that marks image tokens.
        copies: How often a row is repeated.
    """
    left = list(images)
    repeated: list[torch.Tensor] = []
    for room in input_ids.eq(config.image_token_id or 0).sum(-1).tolist():
        own = []
        while left and room >= (size := number_of_image_tokens(left[0].shape[1], left[0].shape[2], config)):
            room -= size
            own.append(left.pop(0))
        repeated += own * copies
    return repeated + left  # what fits in no row is refused by the forward pass
