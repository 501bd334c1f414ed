"""Everything that can be checked before weights are loaded and before anything is written."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from transformers import TrainingArguments

from vlm_lora_plugin.data.dataset import ConversationDataset
from vlm_lora_plugin.data.images import open_image
from vlm_lora_plugin.data.preflight import DataStatistics
from vlm_lora_plugin.data.reading import raise_for_rows
from vlm_lora_plugin.errors import DataError, ModelError, RecipeError
from vlm_lora_plugin.frameworks.trainer import training_arguments
from vlm_lora_plugin.job.look import DTYPES, look_at
from vlm_lora_plugin.job.output import OutputFolder
from vlm_lora_plugin.job.settings import DtypeName, TrainJob
from vlm_lora_plugin.loading import load

if TYPE_CHECKING:
    from vlm_lora_plugin.data.example import Example
    from vlm_lora_plugin.recipe import Recipe
    from vlm_lora_plugin.reporting.summary import ModelSummary
    from vlm_lora_plugin.types import Family


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
        arguments: The Trainer's, checkpoints going to the output folder.
        output: Where results go.
    """

    job: TrainJob
    family: Family
    recipe: Recipe
    dtype: torch.dtype
    summary: ModelSummary
    training: ConversationDataset
    validation: ConversationDataset | None
    statistics: Mapping[str, DataStatistics]
    arguments: TrainingArguments
    output: OutputFolder


def preflight(job: TrainJob) -> Plan:
    """Check a job: output folder, model, recipe, precision, every row and image. Writes nothing.

    Raises:
        VlmLoraError: The first thing found wrong.
    """
    family, recipe = job.check()
    output = OutputFolder(job.output)
    dtype = job.dtype or default_dtype()
    if dtype == "fp16" and not torch.accelerator.is_available():
        raise ModelError("A model in fp16 cannot be trained on a CPU", fix="Give --dtype bf16 or fp32.")
    outline, processor = load(job.model, dtype=DTYPES[dtype], device="meta")
    summary = look_at(outline, str(job.model), family, recipe).summary
    arguments = _arguments(recipe, output.checkpoints, DTYPES[dtype], evaluate=job.val_data is not None)
    sets = {"training": ConversationDataset(job.data, processor, recipe.data, family)}
    if job.val_data is not None:
        sets["validation"] = ConversationDataset(job.val_data, processor, recipe.data, family)
    statistics = {name: data.check() for name, data in sets.items()}
    if job.check_images:
        for data in sets.values():
            decode_images(data.examples)
    return Plan(
        job=job,
        family=family,
        recipe=recipe,
        dtype=DTYPES[dtype],
        summary=summary,
        training=sets["training"],
        validation=sets.get("validation"),
        statistics=statistics,
        arguments=arguments,
        output=output,
    )


def _arguments(recipe: Recipe, checkpoints: Path, dtype: torch.dtype, *, evaluate: bool) -> TrainingArguments:
    on_gpu = torch.cuda.is_available()
    # The filter would replace a loss that is not finite by the last one that was.
    options = {"disable_tqdm": True, "logging_nan_inf_filter": False, "dataloader_pin_memory": on_gpu}
    try:
        return training_arguments(recipe, checkpoints, dtype=dtype, evaluate=evaluate, **options)
    except ValueError as error:
        raise RecipeError(
            f"transformers refuses the recipe's optimizer or training settings: {error}",
            fix="See docs/reference/recipe.md for every key and its values.",
        ) from error


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
