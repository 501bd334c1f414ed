"""From encoded examples to one batch; what every family's processor does alike."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from vlm_lora_plugin.errors import DataError

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
    side = _padding_side(features)

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


def collate_rows(
    features: Sequence[Mapping[str, Any]], *, pad_token_id: int, pad_images: bool = False
) -> dict[str, Any]:
    """Pad rows, and join whatever else they hold, mostly their images, in order of appearance.

    No key but ``input_ids``, ``attention_mask`` and ``labels`` is known by name. A key whose values are ``[T]`` in
    every row, as long as its ``input_ids``, belongs to the tokens (``token_type_ids``) and is padded with them, by 0.
    Every other key belongs to the images (``pixel_values``, ``image_grid_thw``, ``pixel_attention_mask``).

    Args:
        features: Rows as :func:`pad_rows` takes them, with further keys: of images a tensor ``[n, ...]``, or a list of
            tensors where sizes differ within the row; absent in rows without an image.
        pad_token_id: Fills ``input_ids``.
        pad_images: What becomes of tensors whose sizes differ between rows. False gives a list of the images. True
            gives one tensor, zeros added at the end of each dimension, as the processors of transformers do.

    Returns:
        What :func:`pad_rows` returns, and each further key: ``[B, T]`` for what belongs to the tokens, otherwise what
        the rows hold of it one after the other, a tensor ``[N, ...]`` or a list; absent when no row has it.

    Raises:
        DataError: A value is neither a tensor nor a list of tensors, or only some rows have what belongs to the tokens.
    """
    batch: dict[str, Any] = dict(pad_rows(features, pad_token_id=pad_token_id))
    for key in dict.fromkeys(key for row in features for key in row if key not in ("input_ids", "labels")):
        values = [row[key] for row in features if row.get(key) is not None]
        if not values:
            continue
        if _of_tokens(key, features):
            if len(values) != len(features):
                raise DataError(
                    f"{len(values)} of {len(features)} rows of a batch have `{key}`, one value for each token",
                    why="What stands there for the tokens of the other rows is not known.",
                    fix="Let the processor return it for every row, with and without images, or for none.",
                )
            batch[key] = torch.nn.utils.rnn.pad_sequence(
                values, batch_first=True, padding_value=0, padding_side=_padding_side(features)
            )
        else:
            batch[key] = _joined(key, values, pad=pad_images)
    return batch


def _of_tokens(key: str, features: Sequence[Mapping[str, Any]]) -> bool:
    pairs = [(row[key], row["input_ids"]) for row in features if row.get(key) is not None]
    return all(isinstance(value, torch.Tensor) and value.shape == ids.shape for value, ids in pairs)


def _joined(key: str, values: Sequence[Any], *, pad: bool) -> torch.Tensor | list[torch.Tensor]:
    """Return the images of all rows as one tensor where their shapes allow it, else as a list."""
    for value in values:
        if not (_is_tensor(value) or (isinstance(value, list) and all(map(torch.is_tensor, value)))):
            raise DataError(
                f"`{key}` of a row cannot become part of a batch: it is {_kind(value)}",
                fix="Return tensors [n, ...], or lists of tensors, from the processor's encode and encode_prompt.",
            )
    if all(map(_is_tensor, values)):
        tensors = _same_size(values) if pad else list(values)
        if len({tensor.shape[1:] for tensor in tensors}) == 1:
            return torch.cat(tensors)
    return [image for value in values for image in value]


def _is_tensor(value: object) -> bool:
    return isinstance(value, torch.Tensor) and value.ndim > 0


def _kind(value: object) -> str:
    return "a single number" if isinstance(value, torch.Tensor) else f"a {type(value).__name__}, not of tensors alone"


def _same_size(values: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """Return tensors with zeros behind them in every dimension but the first, up to the largest."""
    if len({value.ndim for value in values}) != 1:
        return list(values)
    largest = [max(sizes) for sizes in zip(*(value.shape[1:] for value in values), strict=True)]
    padded = []
    for value in values:
        missing = [size - own for size, own in zip(largest, value.shape[1:], strict=True)]
        padded.append(torch.nn.functional.pad(value, [n for size in reversed(missing) for n in (0, size)]))
    return padded


def _padding_side(features: Sequence[Mapping[str, Any]]) -> str:
    return "right" if "labels" in features[0] else "left"


def to_device(batch: Mapping[str, Any], device: torch.device) -> dict[str, Any]:
    """Return a batch with its tensors, and those in its lists, on a device."""
    return {
        key: [item.to(device) for item in value] if isinstance(value, list) else value.to(device)
        for key, value in batch.items()
    }
