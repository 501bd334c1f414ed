"""What a training job is asked to do, and the checks that need neither torch nor the data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from vlm_lora_plugin.errors import DataError
from vlm_lora_plugin.job.output import OutputFolder

if TYPE_CHECKING:
    from vlm_lora_plugin.recipe import Recipe
    from vlm_lora_plugin.types import Family

    RecipeSource = Recipe | Mapping[str, Any] | str | Path | None

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
    recipe: RecipeSource = None
    overrides: Mapping[str, Any] = field(default_factory=dict)
    dtype: DtypeName | None = None
    overwrite: bool = False
    check_images: bool = True

    def check(self) -> tuple[Family, Recipe]:
        """Check model folder, recipe, data files and output folder.

        Returns:
            Whose model it is, and the resolved recipe.

        Raises:
            ModelError: The folder is of no known family.
            RecipeError: The recipe has an unknown key, value or preset.
            DataError: A data file is missing.
            OutputError: The output folder cannot be used.
        """
        family, recipe = recognise(self.model, self.recipe, self.overrides)
        for file in (self.data, self.val_data):
            if file is not None and not file.is_file():
                raise DataError(f"There is no data file {file}", fix="Give the path of a JSONL or JSON file.")
        OutputFolder(self.output).check(overwrite=self.overwrite)
        return family, recipe


def recognise(folder: Path, recipe: RecipeSource, overrides: Mapping[str, Any]) -> tuple[Family, Recipe]:
    """Find out whose model a folder holds, and resolve a recipe for it.

    Args:
        folder: The model folder.
        recipe: A recipe in any form, or None for the family's default preset.
        overrides: A document laid over the recipe.

    Raises:
        ModelError: The folder is of no known family.
        RecipeError: The recipe has an unknown key, value or preset.
    """
    from vlm_lora_plugin.manager import get_manager
    from vlm_lora_plugin.recipe import resolve_recipe

    family = get_manager().family_of_folder(folder)
    return family, resolve_recipe(recipe, family, overrides)
