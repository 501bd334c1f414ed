"""LoRA initialisation that depends on nothing but the seed and the parameter's name.

Each tensor is drawn in fp32 on the CPU from a generator of its own, so framework, rank, order of creation,
device, dtype and ZeRO stage cannot change it.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence

import torch


def keyed_generator(seed: int, name: str) -> torch.Generator:
    """Return a CPU generator seeded by (seed, canonical parameter name)."""
    digest = hashlib.sha256(f"{seed}:{name}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)


def keyed_lora_down(name: str, shape: Sequence[int], seed: int) -> torch.Tensor:
    """Draw the down projection of a LoRA pair (PEFT's ``lora_A``, a model's own ``lora_a``).

    Uniform in +-1/sqrt(fan_in), which is what ``kaiming_uniform_(a=sqrt(5))`` gives in PEFT and upstream.

    Args:
        name: Canonical parameter name (the published one, or PEFT's saved key without its prefix).
        shape: ``[r, in_features]``, or ``[r, in_channels, k, k]``.
        seed: The recipe's seed.

    Returns:
        An fp32 tensor on the CPU.
    """
    bound = 1.0 / math.sqrt(math.prod(shape[1:]))
    return torch.empty(tuple(shape), dtype=torch.float32).uniform_(-bound, bound, generator=keyed_generator(seed, name))
