"""``vlm-lora inspect``: what a recipe would train in a model, without loading its weights."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vlm_lora_plugin.cli.options import (
    DtypeOption,
    JsonOption,
    PresetOption,
    RecipeOption,
    SetOption,
    TracebackOption,
    VariantOption,
    name_of,
    overrides,
)

if TYPE_CHECKING:
    from rich.console import RenderableType

    from vlm_lora_plugin.job.inspection import Inspection


def inspect(
    model: Annotated[Path, typer.Argument(help="A model folder, or a config.json alone.")],
    recipe: RecipeOption = None,
    preset: PresetOption = None,
    assignments: SetOption = None,
    dtype: DtypeOption = None,
    variant: VariantOption = None,
    names: Annotated[bool, typer.Option("--names", help="List every parameter that learns.")] = False,
    rules: Annotated[bool, typer.Option("--rules", help="List each rule with what it matched and lost.")] = False,
    as_json: JsonOption = False,
    traceback: TracebackOption = False,
) -> None:
    """Show what a recipe would train, predicted memory, and who set each value of the recipe. Loads no weights."""
    import json

    from vlm_lora_plugin.job.meta_model import MetaModel
    from vlm_lora_plugin.job.train_job import recognise
    from vlm_lora_plugin.models.config_folder import config_folder
    from vlm_lora_plugin.plugins.manager import get_manager
    from vlm_lora_plugin.reporting.console import make_console

    with config_folder(model) as folder:
        outline = MetaModel(folder, name_of(dtype), variant)
        family, resolved = recognise(folder, recipe, overrides(assignments, preset), outline.architecture)
        # These import torch: after what can be refused without it.
        from vlm_lora_plugin.job.inspection import inspect_model
        from vlm_lora_plugin.models.weights import has_weights

        look = inspect_model(outline.model, str(model), family, resolved)
        if family.variants and variant is None and not has_weights(folder):
            typer.echo(f"No weights: config.json decides, or --variant {'|'.join(family.variants)}.", err=True)
    advise = None if names or rules else family.advise
    advice = [] if advise is None else list(get_manager().function(family, advise)(resolved))
    if as_json:
        document = {**_document(look, names=names, rules=rules), **({"advice": advice} if advice else {})}
        typer.echo(json.dumps(document, indent=2))
        return
    console = make_console()
    for shown in _shown(look, names=names, rules=rules):
        console.print(shown)
    for line in advice:
        console.print(line, markup=False, highlight=False)


def _document(look: Inspection, *, names: bool, rules: bool) -> dict[str, Any]:
    from vlm_lora_plugin.reporting.selection_tables import names_document, rules_document

    if not names and not rules:
        from vlm_lora_plugin.planning.record import sources_document

        whole = {**look.summary.document(), "sources": sources_document(look.recipe)}
        return whole if look.hardware is None else {**whole, "hardware": look.hardware.document()}
    document: dict[str, Any] = {"model": look.summary.model, "family": look.summary.family}
    if names:
        document["names"] = names_document(look.selection.trainables)
    if rules:
        document["rules"] = rules_document(look.selection)
    return document


def _shown(look: Inspection, *, names: bool, rules: bool) -> list[RenderableType]:
    from vlm_lora_plugin.reporting.selection_tables import names_table, rules_tree
    from vlm_lora_plugin.reporting.tree import component_tree

    shown: list[RenderableType] = []
    if names:
        shown.append(names_table(look.selection.trainables))
    if rules:
        shown.append(rules_tree(look.selection))
    if shown:
        return shown
    from vlm_lora_plugin.reporting.sources_tree import sources_tree

    shown = [component_tree(look.summary), sources_tree(look.recipe)]
    if look.hardware is not None:
        from vlm_lora_plugin.reporting.hardware_table import hardware_tree

        shown.append(hardware_tree(look.hardware, look.hardware.problem()))
    return shown
