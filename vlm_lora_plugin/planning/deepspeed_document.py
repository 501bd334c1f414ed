"""What no part of a DeepSpeed document may say, whoever wrote it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from vlm_lora_plugin.errors import HardwareError, listed

OWN_BLOCKS = ("optimizer", "scheduler")
"""What the recipe decides: with these blocks DeepSpeed replaces the optimizer, and with it the learning-rate groups.

transformers refuses a client optimizer together with an ``optimizer`` block.
"""

INTEGERS = {
    "zero_optimization": (
        "reduce_bucket_size",
        "allgather_bucket_size",
        "stage3_prefetch_bucket_size",
        "stage3_param_persistence_threshold",
        "stage3_max_live_parameters",
        "stage3_max_reuse_distance",
        "sub_group_size",
    )
}
"""Keys that transformers fills only from a ``hidden_size`` at the config's top level, or that must be numbers."""


def check_document(document: Mapping[str, Any], source: str) -> None:
    """Refuse what no part of a DeepSpeed document may say.

    Args:
        document: Keys of DeepSpeed's.
        source: Who gave it, for the message.

    Raises:
        HardwareError: It has an optimizer or scheduler block, or a size that is not an integer.
    """
    blocks = [name for name in OWN_BLOCKS if document.get(name) is not None]
    if blocks:
        raise HardwareError(
            f"{source} has the block {listed(blocks)}",
            why="DeepSpeed would build its own, without the recipe's learning-rate groups, or refuse to start.",
            fix="Leave it out; the recipe's `optimizer` decides.",
        )
    for section, keys in INTEGERS.items():
        part = document.get(section)
        if part is None:
            continue
        if not isinstance(part, Mapping):
            raise HardwareError(f"{source} has {section}: {part!r}", fix=f"{section} holds keys and values.")
        for key in keys:
            value = part.get(key)
            if value is None or (isinstance(value, (int, float)) and not isinstance(value, bool) and value >= 0):
                continue
            raise HardwareError(
                f"{source} has {section}.{key}: {value!r}",
                why="`auto` is filled from a hidden_size that nested configs do not have at their top level.",
                fix="Give a number of elements, such as 16777216.",
            )
