"""What a recipe would train in a model. Imports neither PEFT nor the Trainer, which take seconds."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from vlm_lora_plugin.errors import HardwareError
from vlm_lora_plugin.job.settings import DtypeName
from vlm_lora_plugin.reporting.summary import ModelSummary, summarise
from vlm_lora_plugin.selection.resolve import trace_selection
from vlm_lora_plugin.zero.plan import HardwarePlan, plan_hardware

if TYPE_CHECKING:
    from torch import nn

    from vlm_lora_plugin.recipe import Recipe
    from vlm_lora_plugin.selection.trace import SelectionTrace
    from vlm_lora_plugin.types import Family

DTYPES: dict[DtypeName, torch.dtype] = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}


@dataclass(frozen=True)
class Look:
    """What a recipe trains in a model.

    Attributes:
        summary: In numbers.
        selection: By name, with what became of each rule.
        hardware: The recipe on its hardware; None where it names none.
    """

    summary: ModelSummary
    selection: SelectionTrace
    hardware: HardwarePlan | None = None


def look_at(model: nn.Module, name: str, family: Family, recipe: Recipe) -> Look:
    """Work out what a recipe trains in a model, which may be on the meta device.

    Args:
        model: The base model.
        name: What to call it, its folder usually.
        family: Whose model it is.
        recipe: The resolved recipe.

    Raises:
        SelectionError: The recipe does not fit the model.
    """
    selection = trace_selection(model, family, recipe)
    hardware = plan_hardware(recipe, family, model, selection.trainables) if recipe.hardware is not None else None
    return Look(summarise(model, name, family, recipe, selection.trainables), selection, hardware)


def wanted_dtype(asked: DtypeName | None, recipe: Recipe) -> DtypeName:
    """Return the dtype of the frozen weights: the one asked for, or that of the recipe's hardware, or this machine's.

    Raises:
        HardwareError: bf16 is asked for, which the recipe's hardware lacks.
    """
    if recipe.hardware is None:
        return asked or default_dtype()
    if asked == "bf16" and not recipe.hardware.bf16:
        raise HardwareError(
            "The dtype is bf16, hardware.bf16 is false",
            why="Without bf16 in the device every step is emulated.",
            fix="Leave the dtype out, which gives fp16, or set hardware.bf16 to true.",
        )
    return asked or ("bf16" if recipe.hardware.bf16 else "fp16")


def default_dtype() -> DtypeName:
    """Return bf16 on a GPU that computes in it, fp16 on another GPU, fp32 on a CPU."""
    if not torch.cuda.is_available():
        return "fp32"
    return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"
