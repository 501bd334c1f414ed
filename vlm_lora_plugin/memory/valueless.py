"""A model and a batch without values, so that a step at full size takes no memory."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from vlm_lora_plugin.errors import ModelError


def put_fakes(model: nn.Module, mode: FakeTensorMode, device: torch.device) -> None:
    """Replace each parameter and buffer on the meta device by a fake one; tied parameters stay tied.

    Buffers of integers and truth values become real zeros, as :class:`~vlm_lora_plugin.memory.live_bytes.LiveBytes`
    wants them.

    Raises:
        ModelError: A parameter has values.
    """
    for name, parameter in model.named_parameters():
        if not parameter.is_meta:
            raise ModelError(
                f"{name} has values; a step is traced on a model without any",
                fix="Build it on the meta device, with prepare_outline around it.",
            )
    fakes: dict[int, nn.Parameter] = {}
    for module in model.modules():
        for name, held in module._parameters.items():
            if held is not None:
                if id(held) not in fakes:
                    empty = _empty(held, mode, device)
                    fakes[id(held)] = nn.Parameter(empty, requires_grad=held.requires_grad)
                module._parameters[name] = fakes[id(held)]
        for name, buffer in module._buffers.items():
            if buffer is not None and buffer.is_floating_point():
                module._buffers[name] = _empty(buffer, mode, device)
            elif buffer is not None and buffer.is_meta:
                module._buffers[name] = torch.zeros(buffer.shape, dtype=buffer.dtype)


def fake_batch(batch: Mapping[str, Any], mode: FakeTensorMode, device: torch.device) -> dict[str, Any]:
    """Return a batch whose floats are fake; integers and truth values stay as they are."""
    return {name: _fake(value, mode, device) for name, value in batch.items()}


def _fake(value: Any, mode: FakeTensorMode, device: torch.device) -> Any:
    if isinstance(value, (list, tuple)):
        return type(value)(_fake(part, mode, device) for part in value)
    if isinstance(value, torch.Tensor) and value.is_floating_point():
        return _empty(value, mode, device)
    return value


def _empty(tensor: torch.Tensor, mode: FakeTensorMode, device: torch.device) -> torch.Tensor:
    with mode:
        return torch.empty(tensor.shape, dtype=tensor.dtype, device=device)
