"""From encoded examples to one batch; what every family's processor does alike."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

IGNORE_INDEX = -100
"""The label of a position that is not supervised."""


def pad_rows(features: Sequence[Mapping[str, torch.Tensor]], *, pad_token_id: int) -> dict[str, torch.Tensor]:
    """Pad rows to the longest of them.

    Rows with labels are padded on the right. Rows without (prompts) are padded on the left, so that
    generation goes on where each row ends.

    Args:
        features: Rows of ``input_ids`` [T] int64 and, in all of them or in none, ``labels`` [T] int64.
        pad_token_id: Fills ``input_ids``. It may also occur as a real token: the mask comes from the lengths.

    Returns:
        ``input_ids``, ``attention_mask`` (1 for every real token) and, if given, ``labels`` (-100 in the
        padding), each [B, T] int64.
    """
    labelled = "labels" in features[0]
    side = "right" if labelled else "left"

    def padded(rows: list[torch.Tensor], value: int) -> torch.Tensor:
        return torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=value, padding_side=side)

    ids = [row["input_ids"] for row in features]
    batch = {
        "input_ids": padded(ids, pad_token_id),
        "attention_mask": padded([torch.ones_like(row) for row in ids], 0),
    }
    if labelled:
        batch["labels"] = padded([row["labels"] for row in features], IGNORE_INDEX)
    return batch


def collate_rows(features: Sequence[Mapping[str, Any]], *, pad_token_id: int) -> dict[str, Any]:
    """Pad rows and join their images in order of appearance.

    Args:
        features: Rows as :func:`pad_rows` takes them, with ``pixel_values`` in those that have images: a tensor
            ``[n, 3, S, S]``, or a list of ``[3, H, W]`` where sizes differ.
        pad_token_id: Fills ``input_ids``.

    Returns:
        What :func:`pad_rows` returns, and ``pixel_values`` of the same kind for the whole batch; absent when no row
        has an image.
    """
    batch: dict[str, Any] = dict(pad_rows(features, pad_token_id=pad_token_id))
    pixels = [row["pixel_values"] for row in features if "pixel_values" in row]
    if pixels and isinstance(pixels[0], torch.Tensor):
        batch["pixel_values"] = torch.cat(pixels)
    elif pixels:
        batch["pixel_values"] = [image for images in pixels for image in images]
    return batch


def to_device(batch: Mapping[str, Any], device: torch.device) -> dict[str, Any]:
    """Return a batch with its tensors, and those in its lists, on a device."""
    return {
        key: [item.to(device) for item in value] if isinstance(value, list) else value.to(device)
        for key, value in batch.items()
    }
