"""The refusal of keys that would have no effect in a model or a job, by who set them.

What the user said and cannot be done is an error; what a preset, the hardware or a default says is switched off, and
shown as off. A value that equals the key's default, or that of the preset which the recipe comes from (``origin``),
asks for nothing: a recipe that was written out in full has each.

Every way of training passes :func:`effective_recipe`, because it passes ``prepare``. What only a training loop can
tell, :func:`check_schedule` and :func:`check_evaluation`, is asked where the loop is known.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import TYPE_CHECKING

from vlm_lora_plugin.documents import value_at
from vlm_lora_plugin.errors import RecipeError
from vlm_lora_plugin.patches.from_recipe import asked_keys, why_without_effect
from vlm_lora_plugin.patterns import Matcher
from vlm_lora_plugin.planning.memory import keeps_activations
from vlm_lora_plugin.plugins.manager import get_manager
from vlm_lora_plugin.recipe import LoraSettings, Recipe
from vlm_lora_plugin.selection.resolve import resolve_selection
from vlm_lora_plugin.selection.trainables import counted_means

if TYPE_CHECKING:
    from torch import nn

    from vlm_lora_plugin.contract import Architecture, Family
    from vlm_lora_plugin.planning.resolved import ResolvedRecipe
    from vlm_lora_plugin.selection.trainables import TrainableSet

WHY = "A setting without effect is most often a slip."

EVALUATION_KEYS = (
    "training.eval_steps",
    "training.per_device_eval_batch_size",
    "evaluation.metric",
    "evaluation.max_rows",
    "evaluation.max_new_tokens",
)
"""Keys that need validation data."""

_ANSWER_KEYS = ("evaluation.max_rows", "evaluation.max_new_tokens")


def effective_recipe(
    recipe: ResolvedRecipe, model: nn.Module, family: Family, trainables: TrainableSet, *, strict: bool = True
) -> ResolvedRecipe:
    """Return a recipe as it is carried out in a model: keys without effect refused or off.

    Args:
        recipe: The resolved recipe.
        model: The base model, which may be on the meta device.
        family: Whose model it is.
        trainables: What the recipe trains in it.
        strict: False switches off what the user set, too, and refuses nothing, for an adapter that was trained when it
            was not refused.

    Raises:
        RecipeError: The user set a key that would have no effect; names it, the family, why, and what to write.
    """
    possible = possible_recipe(recipe, model, family, trainables.architecture, strict=strict)
    if strict:
        _check_trained(possible, trainables)
    return possible


def check_in_model(recipe: ResolvedRecipe, model: nn.Module, family: Family) -> ResolvedRecipe:
    """Refuse at the start, on a model without weights, what ``prepare`` would refuse once they are loaded.

    Args:
        recipe: The resolved recipe.
        model: The base model on the meta device.
        family: Whose model it is.

    Returns:
        The recipe as it is carried out.

    Raises:
        RecipeError: As in :func:`effective_recipe`.
        SelectionError: The recipe does not fit the model.
    """
    return effective_recipe(recipe, model, family, resolve_selection(model, family, recipe))


def possible_recipe(
    recipe: ResolvedRecipe, model: nn.Module, family: Family, architecture: Architecture, *, strict: bool = True
) -> ResolvedRecipe:
    """Return a recipe without the patches that cannot work in a model, whatever it trains there.

    Args:
        recipe: The resolved recipe.
        model: The base model, which may be on the meta device.
        family: Whose model it is.
        architecture: What it is made of.
        strict: As in :func:`effective_recipe`.

    Raises:
        RecipeError: The user switched on a patch that cannot work in the model.
    """
    asked = asked_keys(recipe, architecture)
    idle = {key: why for key in asked if (why := why_without_effect(key, model, architecture)) is not None}
    if not idle:
        return recipe
    served = {patch.serves for patch in get_manager().wrap_forward(family, model, recipe)}
    idle = {key: why for key, why in idle.items() if key not in served}
    for key, why in idle.items():
        if strict and _asked_for(recipe, key):
            able = [
                part.name for part in architecture.components if _can_be_checkpointed(part.name, model, architecture)
            ]
            table, _, name = key.partition(".")
            off = f"{table}: {{{name}: false}}" if name else f"{table}: false"
            others = f" Components that can be checkpointed: {', '.join(able) or 'none'}." if name else ""
            raise RecipeError(
                f"{key} is on ({recipe.source(key)}), but has no effect on {family.title}: {why}",
                why="Neither the core nor the family's plugin can do it in this model, so memory would not be saved.",
                fix=f"Write {off}, or remove it.{others}",
            )
    return recipe.without(idle)


def _can_be_checkpointed(name: str, model: nn.Module, architecture: Architecture) -> bool:
    return why_without_effect(f"gradient_checkpointing.{name}", model, architecture) is None


def _check_tables(recipe: ResolvedRecipe, trainables: TrainableSet) -> None:
    """Refuse ``train_fixed_tables`` where no computed table learns.

    Raises:
        RecipeError: The user set it.
    """
    tables = trainables.architecture.fixed_tables
    if not recipe.train_fixed_tables or not _asked_for(recipe, "train_fixed_tables"):
        return
    if not any(map(Matcher(tables), trainables.names)):
        raise RecipeError(
            f"train_fixed_tables is on ({recipe.source('train_fixed_tables')}), but no computed table is trained: "
            + ("no rule trains one in full" if tables else "the model has none"),
            why=WHY,
            fix="Remove it" + (", or train the component that holds the table in full." if tables else "."),
        )


_LORA_KEYS = tuple(f"lora.{name}" for name in LoraSettings.model_fields if name != "target_modules")
"""Keys of PEFT's LoRA alone; targets of nothing are refused where rules are resolved."""

WITHOUT_WARMUP = ("constant", "reduce_lr_on_plateau", "greedy")
"""Schedules of transformers' that take no number of warm-up steps."""


def _check_trained(recipe: ResolvedRecipe, trainables: TrainableSet) -> None:
    """Refuse keys about what learns where nothing of the kind does: LoRA, computed tables, checkpointed components.

    Raises:
        RecipeError: The user set one of them to another value than its default.
    """
    _check_tables(recipe, trainables)
    if not any(parameter.kind == "peft_lora" for parameter in trainables.parameters):
        own = any(parameter.kind == "builtin_lora" for parameter in trainables.parameters)
        because = "nothing is trained by PEFT's LoRA" + (
            "; the LoRA that the model carries itself has its own rank and scale" if own else ""
        )
        _refuse(recipe, _LORA_KEYS, because, "Remove it, or train a component by LoRA: components: {language: lora}.")
    means = counted_means(trainables)
    for name, wanted in recipe.gradient_checkpointing.items():
        key = f"gradient_checkpointing.{name}"
        if wanted and _asked_for(recipe, key) and not keeps_activations(name, means):
            raise RecipeError(
                f"{recipe.said(key)}, but has no effect: nothing in {name}, or in what feeds it, learns",
                why="No activations are kept there, so recomputing them would save nothing.",
                fix=f"Write gradient_checkpointing: {{{name}: false}}, or remove it.",
            )


SCHEDULE_ARGUMENTS = frozenset({"lr_scheduler_type", "warmup_steps", "warmup_ratio"})
LENGTH_ARGUMENTS = frozenset({"max_steps", "num_train_epochs"})
"""Of TrainingArguments: those that decide whether a warm-up, and a number of epochs, has an effect."""


def check_schedule(recipe: ResolvedRecipe, otherwise: Collection[str] = ()) -> None:
    """Refuse a warm-up that the schedule does not have, and epochs in a job whose length is counted in steps.

    Args:
        recipe: The resolved recipe.
        otherwise: Of :data:`SCHEDULE_ARGUMENTS` and :data:`LENGTH_ARGUMENTS`, what the run takes from elsewhere.

    Raises:
        RecipeError: The user set one of them to another value than its default.
    """
    schedule, ratio = recipe.optimizer.lr_scheduler_type, "optimizer.warmup_ratio"
    if schedule in WITHOUT_WARMUP and recipe.optimizer.warmup_ratio and SCHEDULE_ARGUMENTS.isdisjoint(otherwise):
        fix = "Remove it" + (", or take constant_with_warmup." if schedule == "constant" else ".")
        _refuse(recipe, (ratio,), f"{recipe.said('optimizer.lr_scheduler_type')}, which has no warm-up", fix)
    if recipe.training.max_steps != -1 and LENGTH_ARGUMENTS.isdisjoint(otherwise):
        fix = "Remove one of the two; -s training.num_train_epochs=1 lays the default over a file's."
        because = f"{recipe.said('training.max_steps')} and decides how long the run is"
        _refuse(recipe, ("training.num_train_epochs",), because, fix)


def check_evaluation(recipe: ResolvedRecipe, *, validates: bool, give: str = "Give --val-data") -> None:
    """Refuse settings of evaluation in a job that does not evaluate, and of answers where none are measured.

    Args:
        recipe: The resolved recipe.
        validates: Whether the job has validation data.
        give: How to give it some, for the message.

    Raises:
        RecipeError: The user set one of them to another value than its default.
    """
    if not validates:
        _refuse(recipe, EVALUATION_KEYS, "the job has no validation data", f"{give}, or remove it.")
    elif recipe.evaluation.metric is None:
        _refuse(recipe, _ANSWER_KEYS, "evaluation.metric is null, so nothing is answered", "Remove it.")


def _refuse(recipe: ResolvedRecipe, keys: Iterable[str], because: str, fix: str) -> None:
    for key in keys:
        if _asked_for(recipe, key):
            raise RecipeError(f"{recipe.said(key)}, but has no effect: {because}", why=WHY, fix=fix)


def _asked_for(recipe: ResolvedRecipe, key: str) -> bool:
    """Return whether the user set a key to another value than its default and than the preset that it comes from."""
    if not recipe.by_user(key):
        return False
    value = value_at(recipe.document(), key)
    return all(value != value_at(before.document(), key) for before in (Recipe(), _origin(recipe)))


def _origin(recipe: ResolvedRecipe) -> Recipe:
    """Return the preset that a recipe comes from, or an empty recipe where it is unknown here."""
    name, _, preset = (recipe.origin or "").partition("/")
    family = get_manager().families().get(name)
    presets = {} if family is None else family.presets
    return Recipe.parse(presets[preset], source=f"preset {preset}") if preset in presets else Recipe()
