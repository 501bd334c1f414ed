"""The dtype of the frozen weights: what the user, the recipe's hardware or this machine asks for."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import torch

from vlm_lora_plugin.errors import HardwareError

if TYPE_CHECKING:
    from vlm_lora_plugin.recipe import Recipe

DtypeName = Literal["bf16", "fp16", "fp32"]

DTYPES: dict[DtypeName, torch.dtype] = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}


def wanted_dtype(asked: DtypeName | None, recipe: Recipe) -> DtypeName:
    """Return the dtype of the frozen weights: the one asked for, or that of the recipe's hardware, or this machine's.

    Raises:
        HardwareError: bf16 is asked for, which the recipe's hardware lacks.
    """
    if recipe.hardware is None:
        return asked or default_dtype()
    if asked == "bf16" and not recipe.hardware.bf16:
        raise HardwareError(
            f"The dtype is bf16, {recipe.said('hardware.bf16')}",
            why="Without bf16 in the device every step is emulated.",
            fix="Leave the dtype out, which gives fp16, or set hardware.bf16 to true.",
        )
    return asked or ("bf16" if recipe.hardware.bf16 else "fp16")


def default_dtype() -> DtypeName:
    """Return bf16 on a GPU that computes in it, fp16 on another GPU, fp32 on a CPU."""
    if not torch.cuda.is_available():
        return "fp32"
    return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"
