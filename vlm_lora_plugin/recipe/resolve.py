"""From what the user gave to one recipe that stands on its own."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml

from vlm_lora_plugin.errors import RecipeError, nearest
from vlm_lora_plugin.recipe.schema import RATE_KEYS, Recipe
from vlm_lora_plugin.types import Family
from vlm_lora_plugin.zero.fitting import fitted


def read_recipe(source: Recipe | Mapping[str, Any] | str | Path) -> dict[str, Any]:
    """Return the document behind a recipe given in any form, holding only what was set in it.

    Args:
        source: A Recipe, a mapping, a path to a YAML file, or the name of a preset.

    Raises:
        RecipeError: The file is missing or no mapping.
    """
    if isinstance(source, Recipe):
        return source.model_dump(mode="json", exclude_unset=True)
    if isinstance(source, Mapping):
        return dict(source)
    if not isinstance(source, (str, Path)):
        raise RecipeError(
            f"A {type(source).__name__} is no recipe",
            fix="Give a mapping, a Recipe, a path to a YAML file or a preset's name.",
        )
    path = Path(source)
    if path.suffix.lower() not in {".yaml", ".yml"}:
        if path.is_file():
            raise RecipeError(f"{path} is no recipe: its name does not end in .yaml", fix="Rename it to .yaml.")
        if isinstance(source, Path) or path.name != source:  # a folder, or a path to nothing
            raise RecipeError(f"There is no recipe file {path}", fix="Give a path to a YAML file or a preset's name.")
        return {"preset": source}
    try:
        document = yaml.safe_load(path.read_text("utf-8"))
    except FileNotFoundError:
        raise RecipeError(
            f"There is no recipe file {path}", fix="Give a path to a YAML file or a preset's name."
        ) from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise RecipeError(f"{path} is not valid YAML: {error}") from None
    if not isinstance(document, dict):
        held = "nothing" if document is None else f"a {type(document).__name__}"
        raise RecipeError(
            f"{path} holds {held}, not `key: value` lines",
            fix="Begin with `preset: lora`, for example; see docs/reference/recipe.md for every key.",
        )
    return document


def resolve_recipe(
    source: Recipe | Mapping[str, Any] | str | Path | None,
    family: Family,
    overrides: Mapping[str, Any] | None = None,
) -> Recipe:
    """Expand preset and shorthand into one recipe that stands on its own.

    Order of the rules: the preset's components, its rules, the recipe's components, its rules, then those
    of ``overrides``; later ones win. Every other key is merged, the later value winning. With ``hardware``, what
    it sets (:mod:`vlm_lora_plugin.zero.tiers`) comes after the preset and before the recipe. A recipe that was
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
    merged, rules = _stacked(layers)
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
        given: dict[str, Any] = {}
        for recipe in (user, over):
            _merge(given, recipe.model_dump(exclude_unset=True))
        _merge(merged, fitted({**merged, "rules": rules}, given, family))
    origin = f"{family.name}/{preset}" if preset else merged.get("origin")
    return Recipe.parse({**merged, "family": family.name, "origin": origin, "rules": rules})


def lay_over(source: Recipe | Mapping[str, Any] | str | Path, overrides: Mapping[str, Any]) -> dict[str, Any]:
    """Return one document that means what a recipe with overrides means to :func:`resolve_recipe`.

    Args:
        source: A recipe in any form.
        overrides: A document laid over it.

    Raises:
        RecipeError: The recipe cannot be read, or one of the two has an unknown key or value.
    """
    documents = ((read_recipe(source), str(source)), (overrides, "override"))
    parsed = [Recipe.parse(document, source=label) for document, label in documents]
    merged, rules = _stacked([recipe.model_dump(mode="json", exclude_unset=True) for recipe in parsed])
    return {**merged, "rules": rules} if rules else merged


def _stacked(layers: Iterable[dict[str, Any]]) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Return all keys but the rules, later layers winning, and the rules in order; components are rules, too."""
    merged: dict[str, Any] = {}
    rules: list[dict[str, Any]] = []
    for layer in layers:
        rules += [{"component": name, "means": means} for name, means in layer.pop("components", {}).items()]
        rules += layer.pop("rules", ())
        _merge(merged, layer)
    return merged, rules


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


def parse_assignments(assignments: Iterable[str]) -> dict[str, Any]:
    """Turn ``["optimizer.learning_rate=1e-4"]`` into a nested document; values are read as YAML.

    Below ``learning_rate`` and ``weight_decay`` the rest is one key: ``optimizer.learning_rate.vision.lora``.

    Raises:
        RecipeError: An assignment has no ``=``, no valid YAML, or goes below a value given before.
    """
    document: dict[str, Any] = {}
    for text in assignments:
        key, separator, value = text.partition("=")
        if not separator or not key:
            raise RecipeError(
                f"'{text}' is no assignment", fix="Write key=value, for example optimizer.learning_rate=1e-4."
            )
        *parents, last = _steps(key.strip())
        here = document
        for parent in parents:
            here = here.setdefault(parent, {})
            if not isinstance(here, dict):
                raise RecipeError(f"`{key}` goes below `{parent}`, which another assignment sets to {here!r}")
        try:
            here[last] = yaml.safe_load(value)
        except yaml.YAMLError as error:
            raise RecipeError(f"The value of `{key}` is not valid YAML: {value}", fix=str(error)) from None
    return document


def _steps(key: str) -> list[str]:
    steps = key.split(".")
    for at, step in enumerate(steps[:-1], start=1):
        if step in RATE_KEYS:
            return [*steps[:at], ".".join(steps[at:])]
    return steps


def _merge(into: dict[str, Any], layer: Mapping[str, Any]) -> None:
    for key, value in layer.items():
        replaces = key in RATE_KEYS and "default" in value
        if isinstance(value, Mapping) and isinstance(into.get(key), dict) and not replaces:
            _merge(into[key], value)
        else:
            into[key] = dict(value) if isinstance(value, Mapping) else value
