"""One name per parameter, whatever wraps the model."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import nn

PEFT_PREFIX = "base_model.model."
"""What PEFT puts before every name of the model it wraps, in memory and in its files."""

ADAPTER_NAME = "default"
"""The one PEFT adapter that a prepared model has."""

_WRAPPERS = ("module.", "_orig_mod.")  # DistributedDataParallel, torch.compile
_PAIR = re.compile(rf"\.(lora_[AB])\.{ADAPTER_NAME}\.")
_COPY = f".modules_to_save.{ADAPTER_NAME}."
_MAGNITUDE = re.compile(rf"\.lora_magnitude_vector\.{ADAPTER_NAME}(\.weight)?$")


def canonical_name(name: str) -> str:
    """Return a parameter's canonical name from the one it has in memory.

    That is the published name for the base model's own parameters, and PEFT's saved key without its prefix
    for PEFT's. Canonical names come back unchanged.

    Example:
        >>> canonical_name("base_model.model.h.0.c_attn.base_layer.weight")
        'h.0.c_attn.weight'
        >>> canonical_name("base_model.model.h.0.c_attn.lora_A.default.weight")
        'h.0.c_attn.lora_A.weight'
        >>> canonical_name("base_model.model.wte.modules_to_save.default.weight")
        'wte.weight'
        >>> canonical_name("h.0.c_attn.lora_magnitude_vector.default.weight")
        'h.0.c_attn.lora_magnitude_vector'
    """
    while name.startswith(_WRAPPERS):
        name = name.partition(".")[2]
    name = name.removeprefix(PEFT_PREFIX).replace(".base_layer.", ".").replace(_COPY, ".")
    return _MAGNITUDE.sub(".lora_magnitude_vector", _PAIR.sub(r".\1.", name))


def ancestors(name: str) -> Iterator[str]:
    """Yield the names of the modules around a dotted name, innermost first.

    Example:
        >>> list(ancestors("a.b.weight"))
        ['a.b', 'a']
    """
    while "." in name:
        name = name.rpartition(".")[0]
        yield name


def is_injected(model: nn.Module) -> bool:
    """Return whether PEFT layers are already in the model."""
    return any(".base_layer." in name or name.startswith("base_layer.") for name, _ in model.named_parameters())
