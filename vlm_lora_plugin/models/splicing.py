"""Where images stand in a prompt, and how their tokens get there."""

from __future__ import annotations

import torch

from vlm_lora_plugin.errors import ModelError

Blocks = tuple[torch.Tensor, torch.Tensor]


def find_image_blocks(input_ids: torch.Tensor, *, start_id: int, end_id: int, span: int, images: int) -> Blocks | None:
    """Return the places of all images: row ``[N, 1]`` and columns ``[N, span]``, or None when there are none.

    Args:
        input_ids: ``[B, T]`` integers.
        start_id: The token in front of an image's places.
        end_id: The token behind them.
        span: Places of one image.
        images: How many images the batch brings.

    Raises:
        ModelError: There are more or fewer image blocks than images, or a block is not closed after ``span`` places.
    """
    rows, starts = (input_ids == start_id).nonzero(as_tuple=True)
    if len(rows) != images:
        raise ModelError(
            f"The batch has {images} images and {len(rows)} image blocks",
            why="Every image block takes one image, in order over the batch.",
            fix="Give exactly the images in the text.",
        )
    if images == 0:
        return None
    ends = starts + span + 1
    closed = ends < input_ids.shape[1]
    closed &= input_ids[rows, ends.clamp(max=input_ids.shape[1] - 1)] == end_id
    if not bool(closed.all()):
        row, start = int(rows[~closed][0]), int(starts[~closed][0])
        raise ModelError(
            f"The image block at row {row}, token {start} does not end after {span} places",
            why="An image fills exactly that many places between its start token and its end token.",
            fix="Was the row cut off inside an image? Raise max_length, or use the model's own processor.",
        )
    return rows[:, None], starts[:, None] + 1 + torch.arange(span, device=input_ids.device)


def put_images(embeds: torch.Tensor, blocks: Blocks, tokens: torch.Tensor) -> torch.Tensor:
    """Return ``embeds`` [B, T, C] with image tokens ``[N, span, C]`` in the blocks; nothing is changed in place."""
    return embeds.index_put(blocks, tokens.to(embeds.device, embeds.dtype))


def mask_of_blocks(blocks: Blocks, input_ids: torch.Tensor) -> torch.Tensor:
    """Return a mask ``[B, T, 1]`` that is true at the places of images."""
    mask = torch.zeros(*input_ids.shape, 1, dtype=torch.bool, device=input_ids.device)
    return mask.index_put(blocks, torch.ones((), dtype=torch.bool, device=input_ids.device))
