"""From one traced step to the memory of one device, by what it is for."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from vlm_lora_plugin.memory.assumptions import ASSUMPTIONS, OF_DDP, OF_ZERO, USABLE
from vlm_lora_plugin.memory.step import GRADIENTS, STATIC
from vlm_lora_plugin.planning.memory import GIB, RESERVE_GIB, predict

if TYPE_CHECKING:
    from vlm_lora_plugin.memory.live_bytes import Use
    from vlm_lora_plugin.memory.step import StepMemory
    from vlm_lora_plugin.planning.memory import ParameterCounts
    from vlm_lora_plugin.vocabulary import Hardware

OUTSIDE = "loss and splicing"
"""What no part of the model makes."""


@dataclass(frozen=True)
class Part:
    """Some of a device's memory.

    Attributes:
        name: What it is for.
        bytes: How much, at the peak.
        source: ``traced``, ``calculated`` or ``stated``.
    """

    name: str
    bytes: int
    source: str


@dataclass(frozen=True)
class DeviceMemory:
    """The memory of one device at the peak of one step.

    Attributes:
        parts: What it is for.
        usable: Bytes that a process can have; None where no device is named.
        pinned_host: Bytes of host memory that ZeRO-3's offloading pins on one node.
        assumptions: What was not traced.
    """

    parts: tuple[Part, ...]
    usable: int | None
    pinned_host: int
    assumptions: tuple[str, ...]

    @property
    def total(self) -> int:
        """Bytes in all, the reserve included."""
        return sum(part.bytes for part in self.parts)

    @property
    def headroom(self) -> int | None:
        """Bytes left, negative where it does not fit; None where no device is named."""
        return None if self.usable is None else self.usable - self.total

    @property
    def fits(self) -> bool | None:
        """Whether it fits; None where no device is named."""
        return None if self.headroom is None else self.headroom >= 0

    def document(self) -> dict[str, Any]:
        """Return it as plain data; memory in GiB."""
        return {
            "parts": [{"name": p.name, "gib": p.bytes / GIB, "source": p.source} for p in self.parts],
            "total_gib": self.total / GIB,
            "usable_gib": None if self.usable is None else self.usable / GIB,
            "headroom_gib": None if self.headroom is None else self.headroom / GIB,
            "fits": self.fits,
            "pinned_host_gib": self.pinned_host / GIB,
            "assumptions": list(self.assumptions),
        }


def device_memory(
    step: StepMemory,
    load: ParameterCounts,
    hardware: Hardware | None = None,
    *,
    stage: int = 0,
    offload: bool = False,
) -> DeviceMemory:
    """Put together what one device holds at the peak of a step.

    Args:
        step: As it was traced in one process.
        load: What is trained, for what ZeRO divides.
        hardware: The machine; None leaves open whether it fits.
        stage: ZeRO stage; 0 is a plain process, or DistributedDataParallel.
        offload: ZeRO-3 keeps its shards in host memory.
    """
    ranks = 1 if hardware is None else hardware.ranks
    moving = {use: size for use, size in step.peak.uses.items() if use not in (*STATIC, GRADIENTS) and size}
    assumed, pinned = list(ASSUMPTIONS), 0.0
    if stage == 0:
        parts = [Part(use.kind, size, "traced") for use, size in step.peak.uses.items() if use not in moving and size]
        if ranks > 1:
            parts.append(Part("gradient buckets", load.trainable * 4, "calculated"))
            assumed.append(OF_DDP)
    else:
        nodes = 1 if hardware is None else hardware.nodes
        states = predict(load, None, {}, None, stage=stage, ranks=ranks, nodes=nodes, offload=offload and stage == 3)
        parts = [
            Part("frozen weights", round(states.weights * GIB), "calculated"),
            Part("training state", round(states.training_state * GIB), "calculated"),
            Part("gathered, and buckets", round(states.gathered * GIB), "calculated"),
        ]
        pinned = states.pinned_host * GIB
        assumed.append(OF_ZERO)
    by_name: Counter[str] = Counter()
    for use, size in moving.items():
        by_name[_name(use)] += size
    parts += [Part(name, size, "traced") for name, size in by_name.most_common()]
    parts.append(Part("reserve", round(RESERVE_GIB * GIB), "stated"))
    usable = None if hardware is None else round(hardware.gpu_memory * USABLE * GIB)
    return DeviceMemory(tuple(part for part in parts if part.bytes), usable, round(pinned), tuple(assumed))


def _name(use: Use) -> str:
    if use.kind == "forward":
        return f"saved activations: {use.component or OUTSIDE}"
    if use.kind in ("backward", "optimizer"):
        return f"temporaries: {use.component or (OUTSIDE if use.kind == 'backward' else 'optimizer')}"
    return use.kind
