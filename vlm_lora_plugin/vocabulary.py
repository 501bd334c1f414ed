"""The words that everything else is said in: how a part learns, which parts there are, and the machine.

Nothing here imports torch, transformers or pydantic, so that listing families stays instant.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

Means = Literal["frozen", "lora", "full"]
"""How a part of the model learns: not at all, through low-rank updates, or with all its weights."""

ComponentName = Literal["vision", "aligner", "language", "embeddings", "head"]
"""The parts every vision-language model is described by; a family may lack some."""

COMPONENT_NAMES: tuple[ComponentName, ...] = get_args(ComponentName)
MEANS: tuple[Means, ...] = get_args(Means)

Kind = Literal["full", "builtin_lora", "peft_lora"]
"""What a trainable parameter is: a weight of the base, LoRA that the base model itself carries, or PEFT's."""


@dataclass(frozen=True)
class Component:
    """One part of a model, by its parameter names.

    Attributes:
        name: Which of the five parts this is.
        prefixes: Dotted name prefixes. A parameter belongs to the component with the longest prefix that
            equals its name or is followed by a dot.
        target_modules: Suffixes of the linear layers that get PEFT LoRA when the component's means is
            ``lora`` and the recipe names no targets of its own.
        builtin_lora: Regular expression for the *whole* name of parameters that are LoRA inside the base
            model, or None. Where the model has such parameters, ``lora`` means them and not PEFT's.
        blocks: Regular expression for the whole name of the modules that repeat (transformer layers), the
            unit of gradient checkpointing; None where nothing repeats.
    """

    name: ComponentName
    prefixes: tuple[str, ...]
    target_modules: tuple[str, ...] = ()
    builtin_lora: str | None = None
    blocks: str | None = None


@dataclass(frozen=True)
class Hardware:
    """The machine a job is meant for.

    Attributes:
        gpus: Devices of one node.
        gpu_memory: Memory of one device in GiB (2^30 bytes).
        host_memory: Host memory of one node in GiB, or None when unknown.
        bf16: Whether the device computes in bfloat16.
        nodes: Machines of this kind that train together.
    """

    gpus: int
    gpu_memory: float
    host_memory: float | None = None
    bf16: bool = True
    nodes: int = 1

    @property
    def ranks(self) -> int:
        """Processes of the job, one a device."""
        return self.gpus * self.nodes

    def __str__(self) -> str:
        devices = f"{self.gpus}x{self.gpu_memory:g}"
        return devices if self.nodes == 1 else f"{self.nodes} nodes of {devices}"
