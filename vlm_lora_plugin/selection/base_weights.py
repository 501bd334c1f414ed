"""What a checkpoint remembers of the weights that it was trained beside: a digest of a sample of each part of the base.

Older manifests hold nothing else. It also tells bases apart that are stored in different dtypes, and those whose
values were changed behind torch's back after they were read; :mod:`~vlm_lora_plugin.selection.base_bytes` takes every
byte.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping
from typing import TYPE_CHECKING

import torch

from vlm_lora_plugin.names import canonical_name
from vlm_lora_plugin.selection.layout import component_of

if TYPE_CHECKING:
    from torch import nn

    from vlm_lora_plugin.vocabulary import Component

SAMPLES = 32
"""Elements of each tensor that are looked at, evenly spaced: a base that was trained further differs in nearly all."""


def base_digests(
    model: nn.Module, components: Iterable[Component], leave_out: Collection[str], dtype: str
) -> dict[str, str] | None:
    """Return component -> digest of names, shapes and a sample of its weights.

    Args:
        model: The base model, or the prepared one around it.
        components: The family's.
        leave_out: Canonical names that do not count: what is trained or drawn anew, and PEFT's.
        dtype: Name of the dtype that weights are rounded to first, ``bfloat16``.

    Returns:
        The digests, 16 hexadecimal digits each; None where weights are sharded over processes (ZeRO-3).
    """
    parts: defaultdict[str, list[tuple[str, torch.Tensor]]] = defaultdict(list)
    known = tuple(components)
    for memory_name, parameter in model.named_parameters():
        name = canonical_name(memory_name)
        if hasattr(parameter, "ds_id"):
            return None
        component = component_of(name, known)
        if component is not None and name not in leave_out:
            parts[component.name].append((name, parameter))
    return {name: _digest(tensors, getattr(torch, dtype)) for name, tensors in sorted(parts.items())}


def weight_differences(stored: Mapping[str, str] | None, own: Mapping[str, str] | None) -> list[str]:
    """Return the components whose weights differ; none where one side does not know."""
    if stored is None or own is None:
        return []
    return sorted(name for name in stored.keys() | own.keys() if stored.get(name) != own.get(name))


@torch.no_grad()
def _digest(tensors: Iterable[tuple[str, torch.Tensor]], dtype: torch.dtype) -> str:
    named = list(tensors)
    digest = hashlib.sha256(repr([(name, tuple(tensor.shape)) for name, tensor in named]).encode())
    samples = [_sample(tensor.detach(), dtype) for _, tensor in named]
    digest.update(torch.cat(samples).numpy().tobytes())
    return digest.hexdigest()[:16]


def _sample(tensor: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    flat = tensor.reshape(-1)
    places = torch.linspace(0, max(len(flat) - 1, 0), min(SAMPLES, len(flat)), dtype=torch.float64).long()
    values = flat[places.to(flat.device)].cpu()  # a model may lie on several devices
    return (values.to(dtype) if values.is_floating_point() else values).double()
