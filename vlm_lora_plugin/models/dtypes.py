"""Seams between parameters of different dtype."""

from __future__ import annotations

import torch

from vlm_lora_plugin.errors import ModelError

_DTYPES = {
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
    "fp32": torch.float32,
    "fp64": torch.float64,
    "half": torch.float16,
    "float": torch.float32,
    **{
        str(dtype).removeprefix("torch."): dtype
        for dtype in (torch.bfloat16, torch.float16, torch.float32, torch.float64)
    },
}


def to_dtype(dtype: torch.dtype | str | None) -> torch.dtype | None:
    """Return a parameter dtype given as such or by its name; None for ``"auto"`` and None: what the config names.

    Args:
        dtype: ``torch.bfloat16``, ``"bfloat16"``, ``"torch.bfloat16"``, ``"bf16"``...

    Raises:
        ModelError: It is none that parameters can have.

    Example:
        >>> to_dtype("bf16")
        torch.bfloat16
    """
    if dtype is None or dtype == "auto":
        return None
    found = _DTYPES.get(dtype.removeprefix("torch.")) if isinstance(dtype, str) else dtype
    if found not in _DTYPES.values():
        raise ModelError(
            f"{dtype!r} is not a dtype that a model can be loaded in",
            fix='Give "bfloat16", "float16" or "float32", or None for the one that the config names.',
        )
    return found


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
