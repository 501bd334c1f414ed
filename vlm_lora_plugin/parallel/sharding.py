"""Parameters that ZeRO-3 has sharded: their full shape and values.

Between forward passes such a parameter is an empty tensor; each rank holds a part of it elsewhere. Everything
here leaves ordinary parameters alone, and imports DeepSpeed only when a sharded one is met.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import nn

if TYPE_CHECKING:
    from collections.abc import Sequence


def is_sharded(tensor: torch.Tensor) -> bool:
    """Return whether ZeRO-3 shards this parameter."""
    return hasattr(tensor, "ds_id")


def full_shape(tensor: torch.Tensor) -> tuple[int, ...]:
    """Return the shape of a parameter, that of the full tensor where it is sharded."""
    return tuple(getattr(tensor, "ds_shape", tensor.shape))


def full_numel(tensor: torch.Tensor) -> int:
    """Return the number of elements of a parameter, of the full tensor where it is sharded."""
    return math.prod(full_shape(tensor))


def own_numel(tensor: torch.Tensor) -> int:
    """Return how many elements of a parameter this rank holds; the padding of the last parts does not count."""
    if not is_sharded(tensor):
        return tensor.numel()
    held = cast(Any, tensor)
    size = int(held.ds_tensor.ds_numel)
    return max(0, min(size, full_numel(tensor) - size * int(held.ds_zero_partition_rank)))


@contextmanager
def gathered(tensors: Iterable[torch.Tensor], *, change: bool = False) -> Iterator[None]:
    """Gather sharded parameters for a while, on all ranks at once; every rank must come here.

    Args:
        tensors: Parameters, sharded or not.
        change: Keep what is written into them. Every rank must write the same; rank 0's is kept.
    """
    sharded = [tensor for tensor in tensors if is_sharded(tensor)]
    if not sharded:
        yield
        return
    import deepspeed

    with deepspeed.zero.GatheredParameters(sharded, modifier_rank=0 if change else None):
        yield


def partition(parameters: Sequence[nn.Parameter], config: Mapping[str, Any]) -> None:
    """Spread ordinary parameters over the ranks, in place; each rank keeps its part of rank 0's values.

    Args:
        parameters: On every rank the same ones in the same order, with memory for the whole.
        config: DeepSpeed's configuration.
    """
    import deepspeed

    deepspeed.zero.Init(module=nn.ParameterList(parameters), config_dict_or_path=dict(config))


def turn_into(tensor: torch.Tensor, dtype: torch.dtype) -> None:
    """Turn a parameter into another dtype in place, the parts of a sharded one included."""
    tensor.data = tensor.data.to(dtype)
    if is_sharded(tensor):
        part = cast(Any, tensor).ds_tensor
        part.data = part.data.to(dtype)


def full_tensors(tensors: Mapping[str, torch.Tensor], *, keep: bool = True) -> dict[str, torch.Tensor]:
    """Return copies of whole parameters, fp32 on the CPU; every rank must come here where ZeRO is in use.

    Of parameters that DeepSpeed has turned into 16 bit, its optimizer's fp32 values count.

    Args:
        tensors: Parameters by name; on every rank the same in the same order.
        keep: False only takes part, and returns nothing: this rank has no use for the values.
    """
    found: dict[str, torch.Tensor] = {}
    for name, tensor in tensors.items():
        if tensor.dtype != torch.float32 and optimizer_keeps(tensor):
            from deepspeed.utils import safe_get_full_fp32_param

            value = safe_get_full_fp32_param(tensor).view(full_shape(tensor))
            if keep:
                found[name] = _copy(value)
            continue
        with gathered([tensor]):
            if keep:
                found[name] = _copy(tensor)
    return found


def _copy(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.detach().to("cpu", torch.float32, copy=True).contiguous()


def put_full(tensor: torch.Tensor, value: torch.Tensor) -> None:
    """Copy a whole value into a parameter, and into what DeepSpeed's optimizer keeps of it; on all ranks at once."""
    with torch.no_grad(), gathered([tensor], change=True):
        tensor.copy_(value)
    if optimizer_keeps(tensor):
        from deepspeed.utils import safe_set_full_fp32_param

        safe_set_full_fp32_param(tensor, value.to(tensor.device, torch.float32))


def optimizer_keeps(tensor: torch.Tensor) -> bool:
    """Return whether DeepSpeed's optimizer has values of its own for a parameter."""
    return hasattr(tensor, "_hp_mapping") or hasattr(tensor, "_z3_optimizer")
