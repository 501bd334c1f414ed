"""From what was written to one recipe that stands on its own."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vlm_lora_plugin.contract import Family
from vlm_lora_plugin.errors import RecipeError, nearest
from vlm_lora_plugin.planning.fitting import fitted
from vlm_lora_plugin.recipe import Recipe, read_recipe
from vlm_lora_plugin.recipe.document import lay, stacked


def resolve_recipe(
    source: Recipe | Mapping[str, Any] | str | Path | None,
    family: Family,
    overrides: Mapping[str, Any] | None = None,
) -> Recipe:
    """Expand preset and shorthand into one recipe that stands on its own.

    Order of the rules: the preset's components, its rules, the recipe's components, its rules, then those
    of ``overrides``; later ones win. Every other key is merged, the later value winning. With ``hardware``, what
    it sets (:mod:`vlm_lora_plugin.planning.tiers`) comes after the preset and before the recipe. A recipe that was
    resolved before is returned as it is.

    Args:
        source: A recipe in any form; None means the family's default preset.
        family: The family whose presets and components apply.
        overrides: A document laid over the recipe (``--set`` on the command line).

    Raises:
        RecipeError: Unknown key, value, preset, family or component.
        HardwareError: The recipe asks of its hardware what cannot be.
    """
    document = {"preset": family.default_preset} if source is None else read_recipe(source)
    label = str(source) if isinstance(source, (str, Path)) else "recipe"
    user = Recipe.parse(document, source=label)
    over = Recipe.parse(overrides or {}, source="override")
    for recipe in (user, over):
        if recipe.family not in (None, family.name):
            raise RecipeError(
                f"The recipe is for the family {recipe.family}, the model is {family.name}",
                fix=f"Remove `family: {recipe.family}` from the recipe, or use another model.",
            )
    layers = [user.model_dump(exclude_unset=True), over.model_dump(exclude_unset=True)]
    preset = over.preset or user.preset
    if preset is not None:
        if preset not in family.presets:
            raise RecipeError(
                f"{family.title} has no preset '{preset}'",
                fix=nearest(preset, list(family.presets)),
            )
        base = Recipe.parse(family.presets[preset], source=f"preset {preset}")
        layers.insert(0, base.model_dump(exclude_unset=True))
    merged, rules = stacked(layers)
    owned = {component.name for component in family.components}
    for rule in rules:
        if rule.get("component") not in {None, *owned}:
            raise RecipeError(
                f"{family.title} has no component '{rule['component']}'", fix=nearest(rule["component"], sorted(owned))
            )
    for name in (*merged.get("gradient_checkpointing", ()), *merged.get("lora", {}).get("target_modules", ())):
        if name not in owned:
            raise RecipeError(f"{family.title} has no component '{name}'", fix=nearest(name, sorted(owned)))
    _check_processor(merged.get("data", {}).get("processor", {}), family)
    merged.pop("preset", None)
    _check_machine(merged)
    if merged.get("hardware") is not None:
        given = lay(user.model_dump(exclude_unset=True), over.model_dump(exclude_unset=True))
        merged = lay(merged, fitted({**merged, "rules": rules}, given, family))
    origin = f"{family.name}/{preset}" if preset else merged.get("origin")
    return Recipe.parse({**merged, "family": family.name, "origin": origin, "rules": rules})


def _check_machine(document: Mapping[str, Any]) -> None:
    machine = document.get("hardware")
    if machine is not None:
        if machine.get("gpu_memory") is None:
            raise RecipeError(
                "hardware.gpu_memory is needed: the memory of one device in GiB",
                fix="Write hardware: 3x24, or hardware.gpu_memory: 24.",
            )
        return
    for key, value in (
        ("training.global_batch_size", document.get("training", {}).get("global_batch_size")),
        ("deepspeed", document.get("deepspeed")),
    ):
        if value:
            raise RecipeError(
                f"{key} has no effect without `hardware`, which says what it is divided over",
                fix=f"Add hardware: 3x24, for three devices of 24 GiB, or remove {key}.",
            )


def _check_processor(settings: Mapping[str, int], family: Family) -> None:
    known = {option.name: option for option in family.processor_options}
    for name, value in settings.items():
        if name not in known:
            raise RecipeError(
                f"data.processor: {family.title}'s processor has no setting '{name}'",
                fix=nearest(name, list(known)) if known else "Leave data.processor out.",
            )
        if value < known[name].least:
            raise RecipeError(
                f"data.processor.{name} is {value}, less than {known[name].least}", fix=known[name].description
            )
