"""Seams between parameters of different dtype."""

from __future__ import annotations

import torch


def to_weight_dtype(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """Return ``x`` in the dtype of the weight it meets next, unless autocast decides that itself.

    Trainable parameters are fp32 beside frozen ones in 16 bits. Under autocast every layer casts its own
    inputs; outside of it (generation, plain evaluation) the seams need this. Quantised weights, which are
    stored as integers, take any dtype.
    """
    if x.dtype == weight.dtype or not weight.is_floating_point():
        return x
    autocast = not x.is_meta and torch.is_autocast_enabled(x.device.type)
    return x if autocast else x.to(weight.dtype)
