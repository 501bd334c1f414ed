"""What a training job is asked to do."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from vlm_lora_plugin.recipe import Recipe

DtypeName = Literal["bf16", "fp16", "fp32"]


@dataclass(frozen=True)
class TrainJob:
    """One training job.

    Attributes:
        model: A model folder.
        data: The training data, JSONL or JSON.
        output: The folder that results go to.
        val_data: Data to evaluate on, or None.
        recipe: A recipe in any form, or None for the family's default preset.
        overrides: A document laid over the recipe.
        dtype: Dtype of the frozen weights; None picks bf16 on a GPU that computes in it, fp16 on another GPU,
            and fp32 on a CPU.
        overwrite: Replace the results that ``output`` holds already.
        check_images: Decode every image once before training, so that a broken one cannot stop it half-way.
    """

    model: Path
    data: Path
    output: Path
    val_data: Path | None = None
    recipe: Recipe | Mapping[str, Any] | str | Path | None = None
    overrides: Mapping[str, Any] = field(default_factory=dict)
    dtype: DtypeName | None = None
    overwrite: bool = False
    check_images: bool = True
