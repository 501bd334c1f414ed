"""A few numbers that tell whether a tensor has changed, without a copy of it."""

from __future__ import annotations

from typing import Any, cast

import torch

from vlm_lora_plugin.parallel.sharding import is_sharded, own_numel

CHUNK = 2**24
"""Elements that are summed at a time, so that the sum in fp64 takes little memory."""


def local(parameter: torch.Tensor) -> torch.Tensor:
    """Return the part of a parameter that this process holds: all of it; under ZeRO-3 ``[elements]`` of it.

    What pads the last parts there was never written, and may be anything.
    """
    if not is_sharded(parameter):
        return parameter.detach()
    part: torch.Tensor = cast(Any, parameter).ds_tensor
    return part.detach().flatten()[: own_numel(parameter)]


def fingerprint(parameter: torch.Tensor) -> torch.Tensor:
    """Return the sum and the sum of magnitudes of each chunk of a parameter, ``[chunks, 2]`` in fp64 on the CPU."""
    chunks = torch.split(local(parameter).flatten(), CHUNK)
    wide = (chunk.double() for chunk in chunks)
    sums = [torch.stack((chunk.sum(), chunk.abs().sum())) for chunk in wide]
    return torch.stack(sums).cpu()


def largest(tensor: torch.Tensor) -> torch.Tensor:
    """Return the largest magnitude in a tensor as a scalar on its device; NaN when it holds one."""
    if tensor.numel() == 0:
        return tensor.new_zeros(())
    return cast(torch.Tensor, torch.linalg.vector_norm(tensor.detach(), float("inf")))
