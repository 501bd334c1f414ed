"""What generation needs beside the forward pass: where an answer ends, and whose images are whose."""

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


def images_of_rows(
    input_ids: torch.Tensor, images: Sequence[torch.Tensor] | torch.Tensor, config: XComposerConfig
) -> list[int]:
    """Return how many images each row of ``input_ids`` [B, T] has places for.

    Args:
        input_ids: Before rows are repeated.
        images: The transformed images of the batch ``[3, H_i, W_i]``, in order of appearance.
        config: Gives the id that marks image tokens.
    """
    sizes = [number_of_image_tokens(image.shape[1], image.shape[2], config) for image in images]
    counts = []
    for room in input_ids.eq(config.image_token_id or 0).sum(-1).tolist():
        own = 0
        while own < len(sizes) and room >= sizes[own]:
            room -= sizes[own]
            own += 1
        del sizes[:own]
        counts.append(own)
    return counts
