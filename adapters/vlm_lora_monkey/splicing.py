"""Where images stand in a prompt, and how their tokens get there."""

from __future__ import annotations

import torch

from vlm_lora_monkey.configuration import MonkeyConfig
from vlm_lora_plugin.errors import ModelError

Blocks = tuple[torch.Tensor, torch.Tensor]


def find_image_blocks(input_ids: torch.Tensor, config: MonkeyConfig, images: int) -> Blocks | None:
    """Return the places of all images: row ``[N, 1]`` and columns ``[N, span]``, or None when there are none.

    Args:
        input_ids: ``[B, T]`` integers.
        config: Gives the ids of ``<img>`` and ``</img>`` and the places between them.
        images: How many images the batch brings.

    Raises:
        ModelError: There are more or fewer image blocks than images, or a block is not closed after
            ``config.image_token_span`` places.
    """
    rows, starts = (input_ids == config.image_start_id).nonzero(as_tuple=True)
    if len(rows) != images:
        raise ModelError(
            f"The batch has {images} images and {len(rows)} image blocks",
            why="Every <img> block takes one image, in order over the batch.",
            fix="Give pixel_values for exactly the images in the text.",
        )
    if images == 0:
        return None
    span = config.image_token_span
    ends = starts + span + 1
    closed = ends < input_ids.shape[1]
    closed &= input_ids[rows, ends.clamp(max=input_ids.shape[1] - 1)] == config.image_end_id
    if not bool(closed.all()):
        row, start = int(rows[~closed][0]), int(starts[~closed][0])
        raise ModelError(
            f"The image block at row {row}, token {start} does not end after {span} places",
            why="An image fills exactly that many places between <img> and </img>.",
            fix="Was the row cut off inside an image? Raise max_length, or use the model's own processor.",
        )
    return rows[:, None], starts[:, None] + 1 + torch.arange(span, device=input_ids.device)


def check_pixels(pixel_values: torch.Tensor, config: MonkeyConfig) -> torch.Tensor:
    """Return the images as they are, if they have the size that the tower takes.

    Raises:
        ModelError: They do not.
    """
    size = config.vision.image_size
    if pixel_values.shape[1:] != (3, size, size):
        raise ModelError(
            f"pixel_values has the shape {tuple(pixel_values.shape)}, not [N, 3, {size}, {size}]",
            fix="Use the model's own processor.",
        )
    return pixel_values


def put_images(embeds: torch.Tensor, blocks: Blocks, tokens: torch.Tensor) -> torch.Tensor:
    """Return ``embeds`` [B, T, C] with image tokens ``[N, span, C]`` in the blocks; nothing is changed in place."""
    return embeds.index_put(blocks, tokens.to(embeds.device, embeds.dtype))
