"""From encoded examples to one batch; what every family's processor does alike."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

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
