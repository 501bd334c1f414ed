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
    return token_loss(logits.flatten(0, 1), next_tokens(labels).flatten(), num_items_in_batch)


def next_tokens(labels: torch.Tensor) -> torch.Tensor:
    """Return, for every position, the label that it predicts: ``labels`` [B, T] moved left by one, -100 at the end."""
    return F.pad(labels[:, 1:].long(), (0, 1), value=IGNORED)


def token_loss(
    logits: torch.Tensor, targets: torch.Tensor, num_items_in_batch: torch.Tensor | int | None = None
) -> torch.Tensor:
    """Return the same loss for positions that stand in a row.

    Args:
        logits: ``[N, V]``, any float dtype.
        targets: ``[N]`` int64, the token that each position predicts, or -100.
        num_items_in_batch: As in :func:`causal_lm_loss`.
    """
    wide = logits.to(torch.promote_types(logits.dtype, torch.float32))
    total = F.cross_entropy(wide, targets, ignore_index=IGNORED, reduction="sum")
    if num_items_in_batch is None:
        return total / (targets != IGNORED).sum().clamp(min=1)
    if isinstance(num_items_in_batch, torch.Tensor):
        num_items_in_batch = num_items_in_batch.to(total.device)
    return total / num_items_in_batch
