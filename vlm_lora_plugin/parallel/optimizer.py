"""Which parameters an optimizer holds, also one whose own tensors are DeepSpeed's flat buffers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch

from vlm_lora_plugin.parallel.sharding import optimizer_keeps

_GROUPS = ("bit16_groups", "bf16_groups", "fp16_groups")
"""Attributes of DeepSpeed's optimizers that list the model's parameters group by group: of ZeRO-1 and -2, of
BF16_Optimizer, of ZeRO-3 and FP16_Optimizer."""


def held_parameters(optimizer: Any) -> Iterator[tuple[torch.Tensor, Mapping[str, Any]]]:
    """Yield each parameter of the model that an optimizer holds, with the group it belongs to.

    Args:
        optimizer: A plain optimizer, or what accelerate made of one.
    """
    inner, seen = optimizer, set()
    while inner is not None and id(inner) not in seen:
        seen.add(id(inner))
        for attribute in _GROUPS:
            flattened = getattr(inner, attribute, None)
            if flattened:
                groups = inner.param_groups
                # ZeRO-3 splits a group into sub-groups of bounded size.
                owner = getattr(inner, "sub_group_to_group_id", None) or range(len(flattened))
                for index, parameters in enumerate(flattened):
                    for parameter in parameters:
                        yield parameter, groups[owner[index]]
                return
        inner = getattr(inner, "optimizer", None)
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            yield parameter, group


def keeps_fp32(parameter: torch.Tensor) -> bool:
    """Return whether updates of a parameter are made in fp32: its own, or that of DeepSpeed's optimizer."""
    return parameter.dtype == torch.float32 or optimizer_keeps(parameter)
