"""The one loss that every family and both frameworks use."""

from __future__ import annotations

import torch
from torch.nn import functional as F

IGNORED = -100


def causal_lm_loss(
    logits: torch.Tensor, labels: torch.Tensor, num_items_in_batch: torch.Tensor | int | None = None
) -> torch.Tensor:
    """Return the cross-entropy of the next token, summed over supervised tokens and divided once.

    Token t of ``logits`` predicts token t + 1 of ``labels``.

    Args:
        logits: ``[B, T, V]``, any float dtype; the loss is computed in fp32.
        labels: ``[B, T]`` integers, -100 where nothing is supervised.
        num_items_in_batch: Supervised tokens of the whole optimizer step, over all accumulation steps and
            ranks; None divides by those of this batch, which gives the mean.

    Returns:
        An fp32 scalar; 0 when nothing is supervised.
    """
    targets = F.pad(labels[:, 1:].long(), (0, 1), value=IGNORED).flatten()
    wide = logits.flatten(0, 1).to(torch.promote_types(logits.dtype, torch.float32))
    total = F.cross_entropy(wide, targets, ignore_index=IGNORED, reduction="sum")
    if num_items_in_batch is None:
        return total / (targets != IGNORED).sum().clamp(min=1)
    if isinstance(num_items_in_batch, torch.Tensor):
        num_items_in_batch = num_items_in_batch.to(total.device)
    return total / num_items_in_batch
