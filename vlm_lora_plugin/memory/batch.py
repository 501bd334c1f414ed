"""A batch of a given shape, for a step without values where no data is at hand."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch

from vlm_lora_plugin.errors import PlanError
from vlm_lora_plugin.models.image_runs import ImageRunsModel
from vlm_lora_plugin.models.loss import IGNORED

if TYPE_CHECKING:
    from vlm_lora_plugin.models.image_text import ImageTextModel


def stand_in_batch(
    model: ImageTextModel, *, rows: int, tokens: int, answers: int, image_sizes: Sequence[tuple[int, int]]
) -> dict[str, Any]:
    """Return a batch as the model's own processor would make of equal rows.

    Args:
        model: Whose images they are; it may be on the meta device.
        rows: Rows of it.
        tokens: Length of each, places of images included.
        answers: How many tokens at the end of each row have a label.
        image_sizes: ``(height, width)`` in pixels of each image of a row, as the processor transforms it.

    Returns:
        ``input_ids``, ``attention_mask`` and ``labels`` [B, T] with values, ``pixel_values`` on the meta device.

    Raises:
        PlanError: A row is too short for its images and answers.
        ModelError: An image's size is not one that the model takes.
    """
    images = [model.ids_of_image(height, width) for height, width in image_sizes]
    taken = sum(map(len, images))
    if taken + answers + 1 > tokens:
        raise PlanError(
            f"A row of {tokens} tokens cannot hold {len(images)} images ({taken} tokens) and an answer of {answers}",
            fix=f"Give rows of at least {taken + answers + 1} tokens, or smaller images.",
        )
    special = {place for ids in images for place in ids}
    text = next(token for token in range(1, len(special) + 2) if token not in special)
    before = [place for ids in images for place in ids]
    row = [text, *before, *[text] * (tokens - taken - 1)]
    input_ids = torch.tensor([row] * rows)
    labels = torch.full_like(input_ids, IGNORED)
    if answers:
        labels[:, -answers:] = input_ids[:, -answers:]
    batch = {"input_ids": input_ids, "attention_mask": torch.ones_like(input_ids), "labels": labels}
    if images:
        pixels = [torch.empty(3, height, width, device="meta") for _ in range(rows) for height, width in image_sizes]
        batch["pixel_values"] = pixels if isinstance(model, ImageRunsModel) else torch.stack(pixels)  # type: ignore[assignment]
    return batch
