"""The TrainingArguments that a recipe asks for."""

from __future__ import annotations

import os
from typing import Any

import torch
from transformers import TrainingArguments

from vlm_lora_plugin.errors import TrainingError
from vlm_lora_plugin.frameworks.trainer.groups import ANY
from vlm_lora_plugin.frameworks.trainer.schedule import check_schedule
from vlm_lora_plugin.parallel.zero3 import check_loaded_sharded, keep_configuration
from vlm_lora_plugin.planning import effect
from vlm_lora_plugin.planning.resolved import ResolvedRecipe
from vlm_lora_plugin.prepared.model import VlmLoraPeftModel
from vlm_lora_plugin.recipe import Recipe


def training_arguments(
    recipe: Recipe | VlmLoraPeftModel,
    output_dir: str | os.PathLike[str],
    *,
    dtype: torch.dtype | str | None = None,
    evaluate: bool = False,
    **overrides: Any,
) -> TrainingArguments:
    """Return the TrainingArguments that a recipe asks for.

    Args:
        recipe: A resolved recipe, or the prepared model itself.
        output_dir: Where checkpoints go.
        dtype: Dtype the base model was loaded in; 16 bit trains under autocast. None: the prepared model's,
            or fp32 when a recipe was given.
        evaluate: Evaluate as the recipe says; the Trainer then needs an ``eval_dataset``.
        **overrides: Further arguments, which win. Rates, decay, betas and epsilon are the recipe's alone: the
            run stops when an argument differs from them. With ``deepspeed``, its configuration stays known to
            transformers until arguments are made anew; for ZeRO-3, give a recipe and load the model afterwards.

    Raises:
        TrainingError: It is not a recipe, or still names a preset, or float16 is asked for without an accelerator.
        RecipeError: transformers cannot make the recipe's schedule; or the user set a warm-up that the schedule has
            not, or epochs beside ``max_steps``, and none of ``overrides`` gives it an effect.
        ModelError: ZeRO-3 is asked for when the model is loaded already.
    """
    resolved = recipe.vlm_lora.recipe if isinstance(recipe, VlmLoraPeftModel) else recipe
    if isinstance(resolved, ResolvedRecipe):
        effect.check_schedule(resolved, overrides)
    return unchecked_arguments(recipe, output_dir, dtype=dtype, evaluate=evaluate, **overrides)


def unchecked_arguments(
    recipe: Recipe | VlmLoraPeftModel,
    output_dir: str | os.PathLike[str],
    *,
    dtype: torch.dtype | str | None = None,
    evaluate: bool = False,
    **overrides: Any,
) -> TrainingArguments:
    """Return the same without asking whether the schedule's keys have an effect, for a job that was asked when started.

    Raises:
        TrainingError: As in :func:`training_arguments`.
        RecipeError: transformers cannot make the recipe's schedule.
        ModelError: ZeRO-3 is asked for when the model is loaded already.
    """
    prepared = recipe if isinstance(recipe, VlmLoraPeftModel) else None
    if isinstance(recipe, VlmLoraPeftModel):
        dtype, recipe = dtype or recipe.vlm_lora.dtype, recipe.vlm_lora.recipe
    if not isinstance(recipe, Recipe):
        raise TrainingError(
            f"training_arguments takes a prepared model or its recipe, not a {type(recipe).__name__}",
            why="Only then every value is known: a recipe may start from a preset.",
            fix="training_arguments(model, output_dir) with what prepare returned.",
        )
    values = argument_values(recipe, dtype=dtype, evaluate=evaluate)
    arguments = TrainingArguments(**{"output_dir": str(output_dir), **values, **overrides})
    keep_configuration(getattr(arguments, "hf_deepspeed_config", None))
    if prepared is not None:
        check_loaded_sharded(prepared)
    return arguments


def argument_values(
    recipe: Recipe, *, dtype: torch.dtype | str | None = None, evaluate: bool = False
) -> dict[str, Any]:
    """Return the arguments that a recipe decides, by TrainingArguments' names; see :func:`training_arguments`.

    Raises:
        RecipeError: transformers cannot make the recipe's schedule.
        TrainingError: The recipe still names a preset, or float16 is asked for without an accelerator.
    """
    if recipe.preset is not None:
        raise TrainingError(
            f"The recipe still starts from the preset '{recipe.preset}', whose values are not in it yet",
            fix="Give the prepared model, or its recipe model.vlm_lora.recipe.",
        )
    name = str(dtype).removeprefix("torch.")
    check_schedule(recipe)
    on_cpu = not torch.accelerator.is_available()
    if name == "float16" and on_cpu:
        raise TrainingError("float16 cannot be trained on a CPU", fix="Load the model in bfloat16 or float32.")
    optimizer, training = recipe.optimizer, recipe.training
    values: dict[str, Any] = {
        "learning_rate": optimizer.rate(*ANY),
        "weight_decay": optimizer.weight_decay_of(*ANY),
        "adam_beta1": optimizer.adam_beta1,
        "adam_beta2": optimizer.adam_beta2,
        "adam_epsilon": optimizer.adam_epsilon,
        "lr_scheduler_type": optimizer.lr_scheduler_type,
        "lr_scheduler_kwargs": dict(optimizer.lr_scheduler_kwargs) or None,
        "warmup_steps": optimizer.warmup_ratio,  # below 1 it is a share of all steps
        "max_grad_norm": optimizer.max_grad_norm,
        "per_device_train_batch_size": training.per_device_train_batch_size,
        "per_device_eval_batch_size": training.per_device_eval_batch_size,
        "gradient_accumulation_steps": training.gradient_accumulation_steps,
        "num_train_epochs": training.num_train_epochs,
        "max_steps": training.max_steps,
        "logging_steps": training.logging_steps,
        "save_steps": training.save_steps,
        "save_total_limit": training.save_total_limit,
        "dataloader_num_workers": training.dataloader_num_workers,
        "seed": recipe.seed,
        "data_seed": recipe.seed,
        "bf16": name == "bfloat16",
        "fp16": name == "float16",
        "use_cpu": on_cpu,
        "dataloader_pin_memory": not on_cpu,
        "logging_strategy": "steps",
        "logging_nan_inf_filter": False,  # it would show the last finite loss in place of one that is not
        "save_strategy": "steps",
        "prediction_loss_only": True,
        "remove_unused_columns": False,  # the collator needs whatever the processor returns
        "report_to": "none",
        "ddp_timeout": recipe.distributed.timeout,
    }
    if evaluate:
        values["eval_strategy"] = "epoch" if training.eval_steps is None else "steps"
        values["eval_steps"] = training.eval_steps
    return values
