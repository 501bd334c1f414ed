"""The machine a job is meant for, as people write it: ``3x24``."""

from __future__ import annotations

import math
import re

from vlm_lora_plugin.errors import HardwareError
from vlm_lora_plugin.vocabulary import Hardware

SHORTHAND = re.compile(r"(?P<gpus>\d+)\s*[xX×]\s*(?P<memory>\d+(?:\.\d+)?)")
"""Devices of a node, an x, GiB of one device."""

EXAMPLES = "1x24, 1x32, 1x40, 3x24 or 8x80"
LARGEST_GIB = 1024
"""No accelerator has more memory; a larger number is in MiB or bytes."""


def parse_hardware(text: str) -> Hardware:
    """Read ``GPUSxGIB``: ``3x24`` is three devices of 24 GiB.

    Raises:
        HardwareError: The text is no such thing, or its numbers are impossible.

    Example:
        >>> parse_hardware("3x24")
        Hardware(gpus=3, gpu_memory=24.0, host_memory=None, bf16=True, nodes=1)
    """
    found = SHORTHAND.fullmatch(text.strip())
    if found is None:
        raise HardwareError(
            f"'{text}' is not a hardware description",
            fix=f"Write devices x GiB of one device: {EXAMPLES}.",
        )
    return check_hardware(Hardware(int(found["gpus"]), float(found["memory"])))


def check_hardware(hardware: Hardware) -> Hardware:
    """Return the hardware if such a machine can exist.

    Raises:
        HardwareError: A number is not positive, not finite, or plainly in another unit.
    """
    counts = {"gpus": hardware.gpus, "nodes": hardware.nodes}
    for name, count in counts.items():
        if count < 1:
            raise HardwareError(f"{name} is {count}; at least 1 is needed", fix=f"Write {EXAMPLES}.")
    memories = {"gpu_memory": hardware.gpu_memory, "host_memory": hardware.host_memory}
    for name, gib in memories.items():
        if gib is not None and not (math.isfinite(gib) and gib > 0):
            raise HardwareError(f"{name} is {gib:g} GiB", fix="Give the memory in GiB, for example 24.")
    if hardware.gpu_memory > LARGEST_GIB:
        raise HardwareError(
            f"gpu_memory is {hardware.gpu_memory:g} GiB; no device has more than {LARGEST_GIB}",
            fix=f"Give GiB: {hardware.gpu_memory:g} MiB are {hardware.gpu_memory / 1024:g} GiB.",
        )
    return hardware
