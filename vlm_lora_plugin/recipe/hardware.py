"""The sections `hardware` and `distributed`: the machine, and processes that work together on it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

from pydantic import Field, model_validator

from vlm_lora_plugin.errors import HardwareError
from vlm_lora_plugin.hardware import check_hardware, parse_hardware
from vlm_lora_plugin.recipe.section import Section
from vlm_lora_plugin.vocabulary import Hardware


class HardwareSettings(Section):
    """The machine; it fills in what the recipe leaves open. ``3x24`` is three devices of 24 GiB.

    See ``docs/reference/deepspeed.md`` for what each machine sets, and why.
    """

    gpus: int = Field(1, ge=1, description="Devices of one node.")
    gpu_memory: float | None = Field(None, gt=0, description="Memory of one device in GiB; needed.")
    host_memory: float | None = Field(None, gt=0, description="Host memory of one node in GiB; null: unknown.")
    bf16: bool = Field(True, description="Whether the device computes in bfloat16; false trains in fp16.")
    nodes: int = Field(1, ge=1, description="Machines of this kind that train together.")
    offload: bool = Field(False, description="With ZeRO-3: keep the sharded weights in pinned host memory. Slow.")
    zero_stage: Literal[0, 1, 2, 3] | None = Field(
        None,
        description="What is sharded over the devices: 0 nothing (no DeepSpeed), 1 the optimizer's state, "
        "2 gradients too, 3 weights too; null: what fits.",
    )

    @model_validator(mode="before")
    @classmethod
    def _shorthand(cls, value: Any) -> Any:
        if not isinstance(value, str):
            return value
        machine = _sound(parse_hardware, value)
        return {"gpus": machine.gpus, "gpu_memory": machine.gpu_memory}

    @model_validator(mode="after")
    def _can_exist(self) -> HardwareSettings:
        if self.gpu_memory is not None:
            _sound(check_hardware, self.machine())
        if self.offload and self.zero_stage in (0, 1, 2):
            raise ValueError(
                f"offload keeps weights that ZeRO-3 shards in host memory, zero_stage is {self.zero_stage}"
            )
        return self

    def machine(self) -> Hardware:
        """Return the machine alone.

        Raises:
            HardwareError: It has no ``gpu_memory``, as a part of a recipe may.
        """
        if self.gpu_memory is None:
            raise HardwareError("hardware has no gpu_memory", fix="Write hardware: 3x24, or hardware.gpu_memory: 24.")
        return Hardware(self.gpus, self.gpu_memory, self.host_memory, self.bf16, self.nodes)


def _sound(check: Callable[[Any], Hardware], value: Any) -> Hardware:
    try:
        return check(value)
    except HardwareError as error:
        raise ValueError(f"{error.what}. {error.fix}") from None


class DistributedSettings(Section):
    """How several processes work together."""

    timeout: int = Field(
        1800,
        ge=1,
        le=100_000_000,
        description="Seconds that a process waits for the others before it gives up; long before, it says which one is "
        "missing.",
    )
