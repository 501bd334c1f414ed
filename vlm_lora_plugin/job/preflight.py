"""Everything that can be checked before weights are loaded and before anything is written."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from transformers import TrainingArguments

from vlm_lora_plugin.answering.known import known_answers
from vlm_lora_plugin.answering.metrics import Metric, load_metric
from vlm_lora_plugin.checkpoint.data_record import DataRecord, check_same_data
from vlm_lora_plugin.checkpoint.output import OutputFolder
from vlm_lora_plugin.checkpoint.resume import ResumePoint, find_resume_point
from vlm_lora_plugin.checkpoint.space import Saves, check_space
from vlm_lora_plugin.data.dataset import ConversationDataset
from vlm_lora_plugin.data.statistics import DataStatistics, Progress
from vlm_lora_plugin.errors import DataError, ModelError, RecipeError
from vlm_lora_plugin.frameworks.trainer import unchecked_arguments
from vlm_lora_plugin.frameworks.trainer.groups import group_labels
from vlm_lora_plugin.frameworks.trainer.kept_optimizer import Moments
from vlm_lora_plugin.job.inspection import inspect_model
from vlm_lora_plugin.job.parent import check_same_selection, moments_of
from vlm_lora_plugin.job.train_job import TrainJob
from vlm_lora_plugin.loading import load_processor
from vlm_lora_plugin.models.config_folder import read_config
from vlm_lora_plugin.parallel.agreement import require_agreement
from vlm_lora_plugin.parallel.heartbeat import start_heartbeat
from vlm_lora_plugin.parallel.launcher import first_rank, is_rank, started_ranks
from vlm_lora_plugin.planning.deepspeed_checks import check_arguments, check_base
from vlm_lora_plugin.planning.dtypes import DTYPES, wanted_dtype
from vlm_lora_plugin.planning.effect import check_evaluation, check_schedule
from vlm_lora_plugin.planning.resolve import resolve_recipe
from vlm_lora_plugin.plugins.manager import get_manager
from vlm_lora_plugin.selection.resolve import resolve_selection

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from vlm_lora_plugin.contract import Family
    from vlm_lora_plugin.planning.plan import HardwarePlan
    from vlm_lora_plugin.planning.resolved import ResolvedRecipe
    from vlm_lora_plugin.recipe import Recipe
    from vlm_lora_plugin.reporting.summary import ModelSummary
    from vlm_lora_plugin.selection.trainables import TrainableSet


@dataclass(frozen=True)
class Plan:
    """A job that has passed every check.

    Attributes:
        job: What was asked.
        family: Whose model it is.
        recipe: The resolved recipe, switches without effect off.
        dtype: Of the frozen weights.
        summary: What will be trained.
        hardware: The recipe on its hardware; None where it names none.
        training: The training data.
        validation: The validation data, or None.
        statistics: By the name of the data set.
        records: What the data files are, by the name of the data set.
        arguments: The Trainer's, checkpoints going to the output folder.
        output: Where results go.
        metric: What is made of answers to the validation data, or None.
        resumed: What the job goes on from, or None.
        moments: The state that a new job's optimizer starts with, or None for a fresh one.
    """

    job: TrainJob
    family: Family
    recipe: ResolvedRecipe
    dtype: torch.dtype
    summary: ModelSummary
    hardware: HardwarePlan | None
    training: ConversationDataset
    validation: ConversationDataset | None
    statistics: Mapping[str, DataStatistics]
    records: Mapping[str, DataRecord]
    arguments: TrainingArguments
    output: OutputFolder
    metric: Metric | None
    resumed: ResumePoint | None
    moments: Moments | None = None

    @property
    def files(self) -> dict[str, Path]:
        """The data files, by the name of the data set."""
        files = {"training": self.job.data, "validation": self.job.val_data}
        return {name: file for name, file in files.items() if file is not None}

    @property
    def parent(self) -> Path | None:
        """The adapter that the job is to load before its first step; a job that is resumed loads its checkpoint."""
        return None if self.job.parent is None or self.resumed is not None else self.job.parent.folder

    def skipped(self) -> dict[str, list[DataError]]:
        """Return what is wrong with each row that was left out, by the name of the data set."""
        sets = {"training": self.training, "validation": self.validation}
        return {name: data.skipped for name, data in sets.items() if data is not None}


Checking = Callable[[str, int], AbstractContextManager[Progress | None]]
"""Given a data set's name and number of rows, shows how far its check is."""


def preflight(job: TrainJob, checking: Checking = lambda name, rows: nullcontext()) -> Plan:
    """Check a job: output folder, model, recipe, precision, every row and image. Writes nothing.

    Args:
        job: What to do.
        checking: Shows progress; nothing by default.

    Raises:
        VlmLoraError: The first thing found wrong.
    """
    family, recipe = job.check()
    check_evaluation(recipe, validates=job.val_data is not None)
    if not job.resume:  # it was checked when the job was started, and may have been made longer since
        check_schedule(recipe)
    output = OutputFolder(job.output)
    dtype = wanted_dtype(job.dtype, recipe)
    name = str(DTYPES[dtype]).removeprefix("torch.")
    resumed = find_resume_point(output, name, recipe) if job.resume else None
    if dtype == "fp16" and not torch.accelerator.is_available():
        raise ModelError("A model in fp16 cannot be trained on a CPU", fix="Give --dtype bf16 or fp32.")
    metric = load_metric(recipe.evaluation.metric) if job.val_data and recipe.evaluation.metric else None
    processor = load_processor(job.model, recipe)
    outline = get_manager().outline(family, job.model, dtype=DTYPES[dtype])  # built before ranks meet
    look = inspect_model(outline, str(job.model), family, recipe)
    moments = _check_parent(job, outline, family, look.recipe, look.selection.trainables, name)
    if look.hardware is not None:
        look.hardware.check()
        check_base(read_config(job.model), look.hardware.stage, look.hardware.load, look.hardware.hardware)
    sharded = look.hardware.deepspeed if look.hardware is not None and is_rank() else None
    arguments = _arguments(recipe, output.checkpoints, DTYPES[dtype], sharded, evaluate=job.val_data is not None)
    if is_rank():
        start_heartbeat(recipe.distributed.timeout)
        require_agreement(_common(job, recipe), "train the same")  # before ranks share the check of the data
    sets = {"training": ConversationDataset(job.data, processor, recipe.data, family, seed=recipe.seed)}
    if job.val_data is not None:
        sets["validation"] = ConversationDataset(job.val_data, processor, recipe.data, family, seed=recipe.seed)
    statistics = {}
    for name, data in sets.items():
        with checking(name, len(data)) as progress:
            statistics[name] = data.check(decode=job.check_images, progress=progress, share=True)
    if metric is not None:
        known_answers(sets["validation"].examples[: recipe.evaluation.max_rows])
    records = {name: DataRecord(len(data), *data.fingerprint) for name, data in sets.items()}
    if resumed is not None:
        check_same_data(output, records)
    if first_rank():
        there = output.held_bytes if resumed is not None or job.overwrite else 0
        check_space(output.folder, _saves(arguments, look.summary, len(sets["training"])), there=there)
    return Plan(
        job=job,
        family=family,
        recipe=look.recipe,
        dtype=DTYPES[dtype],
        summary=look.summary,
        hardware=look.hardware,
        training=sets["training"],
        validation=sets.get("validation"),
        statistics=statistics,
        records=records,
        arguments=arguments,
        output=output,
        metric=metric,
        resumed=resumed,
        moments=moments,
    )


def _common(job: TrainJob, recipe: Recipe) -> dict[str, Any]:
    """Return what decides where ranks wait for each other before the Trainers can be compared."""
    return {
        "validation data": "given" if job.val_data is not None else "none",
        "metric": recipe.evaluation.metric,
        "check of images": job.check_images,
        "resuming": job.resume,
    }


def _check_parent(
    job: TrainJob,
    outline: PreTrainedModel,
    family: Family,
    recipe: ResolvedRecipe,
    trainables: TrainableSet,
    dtype: str,
) -> Moments | None:
    """Check that a job can start from the adapter that it is to start from; return its optimizer's state, if kept."""
    if job.parent is None:
        return None
    check_same_selection(job.parent, trainables, recipe, outline.config, dtype)
    if not job.keep_optimizer:
        return None
    if recipe.hardware is not None and recipe.hardware.zero_stage:
        raise RecipeError(
            f"The optimizer's state cannot be kept: {recipe.said('hardware.zero_stage')}, and ZeRO shards it",
            fix="Leave --keep-optimizer out, or set hardware.zero_stage=0.",
        )
    own = resolve_recipe(dict(job.parent.manifest.recipe), family, architecture=trainables.architecture)
    before = resolve_selection(outline, family, own)
    return Moments(str(moments_of(job.parent).absolute()), group_labels(before.parameters))


def _saves(arguments: TrainingArguments, summary: ModelSummary, rows: int) -> Saves:
    """Return what a job is going to write; its steps are counted as for a job of all the ranks that it is for."""
    batch = arguments.per_device_train_batch_size * arguments.gradient_accumulation_steps * started_ranks()
    steps = arguments.max_steps if arguments.max_steps > 0 else math.ceil(arguments.num_train_epochs * rows / batch)
    every = int(arguments.save_steps) if arguments.save_strategy == "steps" else 0
    name = getattr(arguments.optim, "value", str(arguments.optim))
    return Saves(summary.trainable, name, steps, every, arguments.save_total_limit)


def _arguments(
    recipe: Recipe, checkpoints: Path, dtype: torch.dtype, deepspeed: dict[str, Any] | None, *, evaluate: bool
) -> TrainingArguments:
    on_gpu = torch.cuda.is_available()
    # The filter would replace a loss that is not finite by the last one that was.
    options: dict[str, Any] = {
        "disable_tqdm": True,
        "logging_nan_inf_filter": False,
        "dataloader_pin_memory": on_gpu,
        "deepspeed": deepspeed,
        "ddp_find_unused_parameters": False,  # every parameter that learns has a gradient in every pass
    }
    try:
        arguments = unchecked_arguments(recipe, checkpoints, dtype=dtype, evaluate=evaluate, **options)
    except ValueError as error:
        raise RecipeError(
            f"transformers refuses the recipe's optimizer or training settings: {error}",
            fix="See docs/reference/recipe.md for every key and its values.",
        ) from error
    if deepspeed is not None:
        check_arguments(deepspeed, arguments)
    return arguments
