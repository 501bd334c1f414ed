"""What a recipe would train in a model folder. Imports neither PEFT nor the Trainer, which take seconds."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import torch

from vlm_lora_plugin.job.settings import DtypeName
from vlm_lora_plugin.loading import load
from vlm_lora_plugin.reporting.summary import ModelSummary, summarise
from vlm_lora_plugin.selection.resolve import resolve_selection

if TYPE_CHECKING:
    from vlm_lora_plugin.recipe import Recipe
    from vlm_lora_plugin.types import Family, Processor

DTYPES: dict[DtypeName, torch.dtype] = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}


def look_at(
    folder: Path, family: Family, recipe: Recipe, dtype: DtypeName | None = None
) -> tuple[ModelSummary, Processor]:
    """Work out what a recipe trains in a model folder, without loading its weights.

    Args:
        folder: The model folder.
        family: Whose model it is.
        recipe: The resolved recipe.
        dtype: Dtype of the frozen weights, or None for the one the folder's config names.

    Raises:
        SelectionError: The recipe does not fit the model.
    """
    model, processor = load(folder, dtype=DTYPES[dtype] if dtype else None, device="meta")
    trainables = resolve_selection(model, family, recipe)
    return summarise(model, str(folder), family, recipe, trainables), processor
