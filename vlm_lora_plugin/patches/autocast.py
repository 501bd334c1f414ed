"""Autocast around a model whose weights are 16 bit and whose trained parameters are fp32."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import nn

from vlm_lora_plugin.contract import Patch
from vlm_lora_plugin.patches.wrapping import undo_all, wrap_method

HALF_DTYPES = (torch.bfloat16, torch.float16)
"""Load dtypes of a base that needs it."""


def autocast_calls(dtype: torch.dtype) -> Patch:
    """Return the patch that computes in a 16-bit dtype, in ``forward`` and ``generate``, where no autocast is active.

    Applied last it is around all other patches, so that what they compute (a loss) is under it, too.

    Args:
        dtype: Of the base's weights, one of :data:`HALF_DTYPES`.
    """
    return Patch(
        name=f"autocast {str(dtype).removeprefix('torch.')}",
        reason="fp32 parameters learn beside 16-bit weights",
        apply=partial(_apply, dtype),
    )


def _apply(dtype: torch.dtype, model: nn.Module) -> Callable[[], None]:
    around = partial(_computing, dtype)
    undo = [wrap_method(model, name, around) for name in ("forward", "generate") if hasattr(model, name)]
    return partial(undo_all, undo)


def _computing(dtype: torch.dtype, model: nn.Module, call: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    device = next(model.parameters()).device.type
    if torch.is_autocast_enabled(device):
        return call(*args, **kwargs)
    with torch.autocast(device, dtype=dtype):
        return call(*args, **kwargs)
