"""From the options that were given and the recipe to the arguments that Swift trains with."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import fields
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transformers import TrainingArguments

from vlm_lora_plugin.checkpoint.manifest_file import read_manifest
from vlm_lora_plugin.documents import nested, value_at
from vlm_lora_plugin.errors import SwiftError
from vlm_lora_plugin.frameworks.recorder import RECORD_VARIABLE
from vlm_lora_plugin.frameworks.swift.families import family_of_type, template_of
from vlm_lora_plugin.frameworks.swift.hardware import apply_dtype, apply_hardware
from vlm_lora_plugin.frameworks.swift.job import SwiftJob
from vlm_lora_plugin.frameworks.swift.options.chosen import Outline
from vlm_lora_plugin.frameworks.swift.options.explicit import default_of
from vlm_lora_plugin.frameworks.swift.options.table import (
    OPTIONS,
    Free,
    LaidOver,
    OfModel,
    OfRecipe,
    OfSelection,
    OfTrainer,
    Only,
)
from vlm_lora_plugin.frameworks.swift.recipe import given_recipe, keep_recipe
from vlm_lora_plugin.frameworks.trainer import argument_values
from vlm_lora_plugin.frameworks.trainer.groups import ANY
from vlm_lora_plugin.planning.effect import check_evaluation, check_in_model, check_schedule
from vlm_lora_plugin.planning.record import sources_of
from vlm_lora_plugin.planning.resolve import resolve
from vlm_lora_plugin.planning.resolved import ResolvedRecipe
from vlm_lora_plugin.plugins.manager import get_manager
from vlm_lora_plugin.recipe import Recipe, RecipeDocument, RecipeSource

if TYPE_CHECKING:
    import torch
    from swift.arguments import SftArguments

    from vlm_lora_plugin.contract import Family

_CHANGING_CALLBACKS = frozenset({"adalora", "lisa"})
"""Swift's callbacks that switch parameters on and off while training."""

_SWIFTS = frozenset({"report_to", "remove_unused_columns", "warmup_steps"})
"""Arguments of the Trainer that a recipe sets and that Swift sets in its own way."""


def apply_recipe(arguments: SftArguments, given: Mapping[str, Any]) -> None:
    """Check what was given against the recipe, and set everything else as ``vlm-lora train`` has it.

    Args:
        arguments: Swift's, with the model folder known and nothing else derived.
        given: The options that somebody asked for, from :func:`given_options`.

    Raises:
        SwiftError: An option contradicts the recipe, or cannot be followed.
        RecipeError: The recipe cannot be read, or a key of the user's would have no effect in the run.
        SelectionError: The recipe does not fit the model.
        HardwareError: The run is not on the recipe's hardware.
    """
    recipe = check_options(arguments, given)
    if SwiftJob.of_process() is None and RECORD_VARIABLE not in os.environ:  # else it was checked, or is compared
        check_evaluation(recipe, validates=bool(arguments.val_dataset), give="Give --val_dataset")
        check_schedule(recipe)
        folder, family = Path(arguments.model_info.model_dir), family_of_type(arguments.model_type)
        check_in_model(recipe, get_manager().outline(family, folder), family)
    apply_dtype(arguments, given, recipe)
    for name, value in {**_recorded(recipe), **_of_trainer(recipe, arguments.torch_dtype, arguments)}.items():
        if name not in given or not isinstance(OPTIONS[name], (OfTrainer, Free)):
            setattr(arguments, name, value)
    for name, treatment in OPTIONS.items():
        if isinstance(treatment, Only) and treatment.values and getattr(arguments, name, None) not in treatment.values:
            setattr(arguments, name, treatment.values[0])
    apply_hardware(arguments, given, recipe, family_of_type(arguments.model_type))
    keep_recipe(recipe)
    arguments.vlm_lora_recipe = recipe.document()  # for args.json


def check_options(arguments: SftArguments, given: Mapping[str, Any]) -> ResolvedRecipe:
    """Return the run's recipe with everything laid over it that was given for keys it leaves open.

    Raises:
        SwiftError: Options contradict it; each is named with the recipe's key.
    """
    family = family_of_type(arguments.model_type)
    source: RecipeSource | RecipeDocument | None = given_recipe()
    checkpoint = arguments.resume_from_checkpoint or next(iter(arguments.adapters), None)
    if source is None and checkpoint:
        kept = read_manifest(checkpoint).recipe
        source = RecipeDocument.as_trained(kept, "the adapter as it was trained", str(checkpoint))
    problems = [problem for name, value in given.items() if (problem := _impossible(name, value, arguments, family))]
    recipe = _resolved(source, given, family, Path(arguments.model_info.model_dir))
    outline = None
    for name, value in given.items():
        treatment = OPTIONS.get(name)
        if isinstance(treatment, (LaidOver, OfRecipe)):
            problems += _contradictions(name, value, recipe)
        elif isinstance(treatment, (OfSelection, OfModel)):
            outline = outline or Outline.of(Path(arguments.model_info.model_dir), family, recipe)
        if isinstance(treatment, OfModel) and outline is not None and value != outline.attention:
            problems.append(
                f"--{name} {shown(value)}: the {treatment.what} of this model is {outline.attention}. Leave it out."
            )
        elif isinstance(treatment, OfSelection) and outline is not None:
            frozen = {name: getattr(arguments, name) for name in ("freeze_llm", "freeze_vit", "freeze_aligner")}
            found = outline.disagreement(name, value, frozen)
            if found:
                problems.append(f"--{name} {shown(value)}: the recipe says otherwise ({treatment.key}): {found}")
    if problems:
        raise SwiftError(
            "These options contradict the recipe or cannot be followed:\n  " + "\n  ".join(problems),
            why="The recipe decides, so that every framework trains the same; ignored, they would mislead.",
            fix="Change the recipe's key, or leave the option out.",
        )
    return recipe


def _resolved(
    source: RecipeSource | RecipeDocument | None, given: Mapping[str, Any], family: Family, folder: Path
) -> ResolvedRecipe:
    """Resolve the run's recipe with the options laid over it that say what it leaves open."""
    if isinstance(source, ResolvedRecipe):
        return source
    written = source if isinstance(source, RecipeDocument) else _written(source)
    laid: dict[str, Any] = {}
    for name, value in given.items():
        if isinstance(OPTIONS.get(name), LaidOver):
            laid |= {key: new for key, new in (in_recipe(name, value) or {}).items() if not written.says(key)}
    if laid:
        written = written.under(nested(laid), "the options of swift sft")
    return resolve(written, family, partial(get_manager().architecture_of_folder, family, folder))


def _written(source: RecipeSource | None) -> RecipeDocument:
    """Return what a run's recipe says; that of ``vlm-lora train`` with who set each value."""
    job = SwiftJob.of_process()
    if job is None or not isinstance(source, Mapping):
        return RecipeDocument.read(source)
    kept = Recipe.parse(source)
    return RecipeDocument.recorded(source, sources_of(json.loads(job.sources), kept, "the recipe"), "the recipe")


def in_recipe(option: str, value: Any) -> dict[str, Any] | None:
    """Return the recipe's keys and values that say what an option says; None where none can."""
    if option == "truncation_strategy":
        return {
            None: {},
            "right": {"data.truncation_strategy": "right"},
            "delete": {"data.truncation_strategy": "raise", "data.on_bad_sample": "skip"},
        }.get(value)
    if option == "loss_scale":
        return {"default": {"data.loss_on": "all"}, "last_round": {"data.loss_on": "last"}}.get(value)
    if option == "strict":
        return {"data.on_bad_sample": "error" if value else "skip"}
    treatment = OPTIONS[option]
    return {treatment.key: value} if isinstance(treatment, (LaidOver, OfRecipe)) else None


def value_of(recipe: Recipe, key: str) -> Any:
    """Return what a recipe says under a dotted key of :data:`OPTIONS`."""
    if key == "optimizer.weight_decay":
        return recipe.optimizer.weight_decay_of(*ANY)
    missing = False if key.startswith("gradient_checkpointing.") else None
    return value_at(recipe.model_dump(), key, missing)


def shown(value: Any) -> str:
    """Return a value as one would type it."""
    if isinstance(value, (list, tuple)):
        return " ".join(map(str, value))
    return str(value).lower() if isinstance(value, bool) else str(value)


def _impossible(name: str, value: Any, arguments: SftArguments, family: Family) -> str | None:
    if name not in OPTIONS:
        return f"--{name}: this version of vlm-lora-plugin does not know it. Leave it out, or update the package."
    treatment = OPTIONS[name]
    if name == "template":
        return None if value == template_of(family) else f"--template {value}: the family has its own. Leave it out."
    if name == "truncation_strategy" and in_recipe(name, value) is None:
        return f"--{name} {value}: answers and images would be cut off. Use `right` (data.truncation_strategy)."
    if name == "split_dataset_ratio" and arguments.val_dataset:
        return None  # Swift itself then splits nothing
    if name == "loss_scale" and in_recipe(name, value) is None:
        return (
            f"--{name} {value}: the loss is the mean over supervised tokens, those of answers. Use `default` or "
            "`last_round` (data.loss_on), and `weight` 0 or 1 in the data's turns."
        )
    if name == "callbacks":
        found = sorted(_CHANGING_CALLBACKS & set(value))
        return f"--callbacks {shown(found)}: it changes which parameters learn. Leave it out." if found else None
    if not isinstance(treatment, Only):
        return None
    default = default_of(next(field for field in fields(arguments) if field.name == name))
    return None if value in (treatment.values or (default,)) else f"--{name} {shown(value)}: {treatment.instead}"


def _contradictions(name: str, value: Any, recipe: ResolvedRecipe) -> list[str]:
    wanted = in_recipe(name, value) or {}
    return [
        f"--{name} {shown(value)}: the recipe's {key} is {shown(value_of(recipe, key))} ({recipe.source(key)})"
        for key, new in wanted.items()
        if value_of(recipe, key) != new
    ]


def _recorded(recipe: Recipe) -> dict[str, Any]:
    """Return the options of Swift's own that follow from a recipe."""
    own = {
        name: value_of(recipe, treatment.key) for name, treatment in OPTIONS.items() if isinstance(treatment, OfRecipe)
    }
    return own | {
        "max_length": recipe.data.max_length,
        "truncation_strategy": "right" if recipe.data.truncation_strategy == "right" else "delete",
        "strict": recipe.data.on_bad_sample == "error",
        "loss_scale": "default",  # rows bring their marks, so Swift's own machinery has nothing left to do
        "warmup_ratio": recipe.optimizer.warmup_ratio,  # Swift makes warmup_steps of it as each transformers wants
        "warmup_steps": 0,
        "vit_lr": None,
        "aligner_lr": None,
        "gradient_checkpointing": False,  # the recipe's patches do it
        "vit_gradient_checkpointing": False,
        "check_model": False,  # asks a server
    }


def _of_trainer(recipe: Recipe, dtype: torch.dtype, arguments: SftArguments) -> dict[str, Any]:
    """Return the options that both frameworks have, as the Trainer has them."""
    defaults = {
        field.name: default_of(field)
        for field in fields(TrainingArguments)
        if isinstance(OPTIONS.get(field.name), OfTrainer)
    }
    values = defaults | argument_values(recipe, dtype=dtype, evaluate=bool(arguments.val_dataset))
    return {name: value for name, value in values.items() if name not in _SWIFTS}
