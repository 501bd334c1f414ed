"""LoRA initialisation that depends on nothing but the seed and the parameter's name.

Each tensor is drawn in fp32 on the CPU from a generator of its own, so framework, rank, order of creation,
device, dtype and ZeRO stage cannot change it.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Iterable, Mapping, Sequence

import torch

from vlm_lora_plugin.contract.model import CarriesLora
from vlm_lora_plugin.errors import ModelError
from vlm_lora_plugin.parallel.sharding import gathered


def fresh_lora_of(model: object) -> tuple[str, ...]:
    """Return the names of a base model's own LoRA that its checkpoint did not hold; none where it carries no LoRA."""
    return tuple(model.fresh_lora_names) if isinstance(model, CarriesLora) else ()


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


@torch.no_grad()
def draw_builtin(parameters: Mapping[str, torch.Tensor], names: Iterable[str], seed: int) -> None:
    """Initialise LoRA that a base model carries itself: down drawn by key, up zero, scale one.

    Args:
        parameters: Canonical name -> tensor, changed in place in its own dtype; ZeRO-3 may shard it.
        names: Which of them to draw. The ending tells the part: ``lora_a``, ``lora_b`` (each with or
            without ``.weight``, in any case) or ``lora_scale``.
        seed: The recipe's seed.

    Raises:
        ModelError: A name is not in the model, or its ending tells no part.
    """
    for name in names:
        part = re.search(r"lora_(a|b|scale)(\.weight)?$", name, re.IGNORECASE)
        if name not in parameters or part is None:
            raise ModelError(
                f"{name} is named as LoRA to initialise, but "
                + ("the model has no such parameter" if part else "its ending is none of lora_a, lora_b, lora_scale")
            )
        tensor = parameters[name]
        with gathered([tensor], change=True):
            if part[1].lower() == "a":
                tensor.copy_(keyed_lora_down(name, tensor.shape, seed))
            elif part[1].lower() == "b":
                tensor.zero_()
            else:
                tensor.fill_(1.0)
