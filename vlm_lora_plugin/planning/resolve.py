"""From what was written to one recipe that stands on its own."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict
from typing import Any, TypeAlias

from vlm_lora_plugin.contract import Architecture, Family, OptionValue
from vlm_lora_plugin.documents import value_at
from vlm_lora_plugin.errors import HardwareError, RecipeError, nearest
from vlm_lora_plugin.planning.fitting import fit
from vlm_lora_plugin.planning.resolved import ResolvedRecipe
from vlm_lora_plugin.recipe import Recipe, RecipeDocument, RecipeSource, Source
from vlm_lora_plugin.recipe.document import Stacked, lay
from vlm_lora_plugin.vocabulary import Hardware

ArchitectureSource: TypeAlias = Architecture | Callable[[], Architecture] | None
"""What a model is made of; a function that finds out, called once what needs no model is checked; None for no model.

Without a model a recipe may name any component, and with hardware it is for the family's published model.
"""


def resolve_recipe(
    source: RecipeSource | None,
    family: Family,
    overrides: Mapping[str, Any] | None = None,
    architecture: ArchitectureSource = None,
) -> ResolvedRecipe:
    """Read a recipe in any form and resolve it; one that is resolved is returned as it is.

    Args:
        source: A recipe in any form; None means the family's default preset.
        family: The family whose presets and components apply.
        overrides: A document laid over the recipe (``--set`` on the command line). Over a resolved recipe, what
            was written for that one is resolved anew.
        architecture: What the model is made of, see :data:`ArchitectureSource`.

    Raises:
        RecipeError: Unknown key, value, preset, family or component.
        HardwareError: The recipe asks of its hardware what cannot be.
    """
    if isinstance(source, ResolvedRecipe):
        _check_family(source, Source("user", "the recipe"), family)
        if not overrides:
            return source
        written = source.written.under(overrides, "the settings laid over it")
        architecture = architecture or source.architecture
    else:
        written = RecipeDocument.read(source, overrides)
    return resolve(written, family, architecture)


def resolve(
    document: RecipeDocument,
    family: Family,
    architecture: ArchitectureSource,
    hardware: Hardware | None = None,
) -> ResolvedRecipe:
    """Expand preset and shorthand into one recipe that stands on its own; once for a process.

    Order of the rules: the preset's components, its rules, the recipe's components, its rules, then those of
    each layer above; later ones win. Every other key is merged, the later value winning. With ``hardware``, what
    it sets (:mod:`vlm_lora_plugin.planning.tiers`) comes after the preset and before the recipe. A recipe that was
    resolved before keeps its values and their sources.

    Args:
        document: What was written.
        family: The family whose presets apply.
        architecture: What the model is made of, see :data:`ArchitectureSource`.
        hardware: The machine, where the document names none.

    Raises:
        RecipeError: Unknown value, preset, family or component.
        HardwareError: The recipe asks of its hardware what cannot be.
    """
    layers = [(layer.document(), layer.source) for layer in document.layers]
    for layer in document.layers:
        _check_family(layer.recipe, layer.source, family)
    if hardware is not None and not document.says("hardware"):
        layers.append(({"hardware": asdict(hardware)}, Source("user", "the machine given")))
    preset = document.preset or (None if document.names_recipe else family.default_preset)
    base = Recipe()
    if preset is not None:
        if preset not in family.presets:
            raise RecipeError(
                f"{family.title} has no preset '{preset}'",
                fix=nearest(preset, list(family.presets)),
            )
        base = Recipe.parse(family.presets[preset], source=f"preset {preset}")
        layers.insert(0, (base.model_dump(exclude_unset=True), Source("preset", preset)))
    stacked = Stacked.of(layers)
    values, sources = stacked.document, {k: v for k, v in stacked.sources.items() if k not in _INFORMATION}
    _check_processor(value_at(values, "data.processor", {}), family)
    _check_labels(values, family)
    values.pop("preset", None)
    _check_machine(values)
    known = architecture() if callable(architecture) else architecture
    if known is not None:
        _check_components(values, stacked.rules, known, family)
    origin = f"{family.name}/{preset}" if preset else values.get("origin")
    values |= {"family": family.name, "origin": origin, "rules": stacked.rules}
    if values.get("hardware") is None:
        return ResolvedRecipe.of(values, document.decided(sources), document, known or Architecture(()))
    known = known or _published(family)
    recipe = ResolvedRecipe.of(values, sources, document, known)
    fitted = fit(recipe, family, known, base.training)
    whole = lay(values, fitted.document())
    decided = document.decided({**sources, **fitted.sources})
    return ResolvedRecipe.of(whole, decided, document, known, fitted.told(decided), recipe.adapter_settings)


_INFORMATION = ("family", "preset", "origin")
"""Keys that decide nothing once a recipe is resolved."""


def _check_family(recipe: Recipe, source: Source, family: Family) -> None:
    if recipe.family not in (None, family.name):
        raise RecipeError(
            f"The recipe is for the family {recipe.family} ({source}), the model is {family.name}",
            fix=f"Remove `family: {recipe.family}` from the recipe, or use another model.",
        )


def _published(family: Family) -> Architecture:
    if family.size is None:
        raise HardwareError(
            f"What fits on a machine is unknown for {family.title} without a model: it publishes no sizes",
            fix="Give the model's folder, or its config.json alone: vlm-lora deepspeed --model FOLDER.",
        )
    return family.size.architecture


def _check_components(
    values: Mapping[str, Any], rules: Iterable[Mapping[str, Any]], architecture: Architecture, family: Family
) -> None:
    owned = architecture.component_names
    named = [rule["component"] for rule in rules if rule.get("component") is not None]
    for name in (*named, *values.get("gradient_checkpointing", ()), *value_at(values, "lora.target_modules", ())):
        if name not in owned:
            raise RecipeError(f"{family.title} has no component '{name}'", fix=nearest(name, sorted(owned)))


def _check_machine(document: Mapping[str, Any]) -> None:
    if document.get("hardware") is not None:
        if value_at(document, "hardware.gpu_memory") is None:
            raise RecipeError(
                "hardware.gpu_memory is needed: the memory of one device in GiB",
                fix="Write hardware: 3x24, or hardware.gpu_memory: 24.",
            )
        return
    for key in ("training.global_batch_size", "deepspeed"):
        if value_at(document, key):
            raise RecipeError(
                f"{key} has no effect without `hardware`, which says what it is divided over",
                fix=f"Add hardware: 3x24, for three devices of 24 GiB, or remove {key}.",
            )


def _check_labels(values: Mapping[str, Any], family: Family) -> None:
    if value_at(values, "data.upstream_labels") and not family.data_formats.upstream_labels:
        raise RecipeError(
            f"data.upstream_labels is true, but has no effect on {family.title}: its published code learns from the "
            "answers, as every row here does, or has no data form of its own",
            why="A setting without effect is most often a slip.",
            fix="Remove it.",
        )


def _check_processor(settings: Mapping[str, OptionValue], family: Family) -> None:
    known = {option.name: option for option in family.data_formats.processor_options}
    for name, value in settings.items():
        if name not in known:
            raise RecipeError(
                f"data.processor: {family.title}'s processor has no setting '{name}'",
                fix=nearest(name, list(known)) if known else "Leave data.processor out.",
            )
        problem = known[name].problem(value)
        if problem:
            raise RecipeError(f"data.processor.{name} {problem}", fix=known[name].description)
