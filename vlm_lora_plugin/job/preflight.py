"""Everything that can be checked before weights are loaded and before anything is written."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from vlm_lora_plugin.data.dataset import ConversationDataset
from vlm_lora_plugin.data.images import open_image
from vlm_lora_plugin.data.preflight import DataStatistics
from vlm_lora_plugin.data.reading import raise_for_rows
from vlm_lora_plugin.errors import DataError, TrainingError
from vlm_lora_plugin.job.output import OutputFolder
from vlm_lora_plugin.job.settings import DtypeName, TrainJob
from vlm_lora_plugin.loading import load
from vlm_lora_plugin.manager import get_manager
from vlm_lora_plugin.recipe import Recipe, resolve_recipe
from vlm_lora_plugin.reporting.summary import ModelSummary, summarise
from vlm_lora_plugin.selection.resolve import resolve_selection

if TYPE_CHECKING:
    from vlm_lora_plugin.data.example import Example
    from vlm_lora_plugin.types import Family, Processor

DTYPES: dict[DtypeName, torch.dtype] = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}


@dataclass(frozen=True)
class Plan:
    """A job that has passed every check.

    Attributes:
        job: What was asked.
        family: Whose model it is.
        recipe: The resolved recipe.
        dtype: Of the frozen weights.
        summary: What will be trained.
        training: The training data.
        validation: The validation data, or None.
        statistics: By the name of the data set.
        output: Where results go.
    """

    job: TrainJob
    family: Family
    recipe: Recipe
    dtype: DtypeName
    summary: ModelSummary
    training: ConversationDataset
    validation: ConversationDataset | None
    statistics: Mapping[str, DataStatistics]
    output: OutputFolder


def look_at(
    folder: Path,
    recipe: Recipe | Mapping[str, Any] | str | Path | None,
    overrides: Mapping[str, Any],
    dtype: DtypeName | None = None,
) -> tuple[Family, Recipe, ModelSummary, Processor]:
    """Work out what a recipe trains in a model folder, without loading its weights.

    Args:
        folder: The model folder.
        recipe: A recipe in any form, or None for the family's default preset.
        overrides: A document laid over the recipe.
        dtype: Dtype of the frozen weights, or None for the one the folder's config names.

    Raises:
        ModelError: The folder is of no known family.
        RecipeError: The recipe has an unknown key, value or preset.
        SelectionError: The recipe does not fit the model.
    """
    family = get_manager().family_of_folder(folder)
    resolved = resolve_recipe(recipe, family, overrides)
    model, processor = load(folder, dtype=DTYPES[dtype] if dtype else None, device="meta")
    trainables = resolve_selection(model, family, resolved)
    return family, resolved, summarise(model, str(folder), family, resolved, trainables), processor


def preflight(job: TrainJob) -> Plan:
    """Check a job: output folder, model, recipe, precision, every row and image. Writes nothing.

    Raises:
        VlmLoraError: The first thing found wrong.
    """
    output = OutputFolder(job.output)
    output.check(overwrite=job.overwrite)
    dtype = job.dtype or default_dtype()
    if dtype == "fp16" and not torch.cuda.is_available():
        raise TrainingError("fp16 trains on a GPU only, and there is none", fix="Give --dtype bf16 or fp32.")
    family, recipe, summary, processor = look_at(job.model, job.recipe, job.overrides, dtype)
    sets = {"training": ConversationDataset(job.data, processor, recipe.data, family)}
    if job.val_data is not None:
        sets["validation"] = ConversationDataset(job.val_data, processor, recipe.data, family)
    statistics = {name: data.check() for name, data in sets.items()}
    if job.check_images:
        for data in sets.values():
            decode_images(data.examples)
    return Plan(job, family, recipe, dtype, summary, sets["training"], sets.get("validation"), statistics, output)


def default_dtype() -> DtypeName:
    """Return bf16 on a GPU that computes in it, fp16 on another GPU, fp32 on a CPU."""
    if not torch.cuda.is_available():
        return "fp32"
    return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"


def decode_images(examples: Sequence[Example]) -> None:
    """Decode every image once, several at a time.

    Raises:
        DataError: Names the rows whose images are broken or cut short.
    """

    def problem(example: Example) -> DataError | None:
        try:
            for image in example.images:
                with open_image(image, origin=example.origin) as opened:
                    opened.load()
        except DataError as error:
            return error
        return None

    with ThreadPoolExecutor() as pool:
        problems = [error for error in pool.map(problem, examples) if error is not None]
    raise_for_rows(problems, len(examples))
