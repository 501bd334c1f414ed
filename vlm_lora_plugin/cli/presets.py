"""``vlm-lora presets``: the recipes that families bring along."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vlm_lora_plugin.cli.options import JsonOption, TracebackOption

if TYPE_CHECKING:
    from rich.tree import Tree

    from vlm_lora_plugin.contract import Family


def presets(
    family: Annotated[str | None, typer.Argument(help="A family's name, or a model folder; all families.")] = None,
    as_json: JsonOption = False,
    traceback: TracebackOption = False,
) -> None:
    """List presets: what each trains by which means, at which rates."""
    import json

    from vlm_lora_plugin.reporting.console import make_console

    families = _families(family)
    if as_json:
        typer.echo(json.dumps({each.name: _document(each) for each in families}, indent=2))
        return
    console = make_console()
    for each in families:
        console.print(_tree(each))


def _families(wanted: str | None) -> list[Family]:
    from vlm_lora_plugin.models.config_folder import config_folder
    from vlm_lora_plugin.plugins.manager import get_manager

    manager = get_manager()
    if wanted is None:
        return list(manager.families().values())
    if wanted not in manager.names() and Path(wanted).exists():
        with config_folder(Path(wanted)) as folder:
            return [manager.family_of_folder(folder)]
    return [manager.family(wanted)]


def _document(family: Family) -> dict[str, Any]:
    from vlm_lora_plugin.planning.resolve import resolve_recipe

    return {
        "title": family.title,
        "default": family.default_preset,
        "processor": {option.name: option.description for option in family.data_formats.processor_options},
        "presets": {name: resolve_recipe(name, family).document() for name in family.presets},
    }


def _tree(family: Family) -> Tree:
    from rich.text import Text
    from rich.tree import Tree

    from vlm_lora_plugin.planning.resolve import resolve_recipe
    from vlm_lora_plugin.selection.matching import describe

    tree = Tree(Text.assemble((family.title, "bold"), f" ({family.name})"), guide_style="dim")
    for name in family.presets:
        recipe = resolve_recipe(name, family)
        mark = "  default" if name == family.default_preset else ""
        node = tree.add(Text.assemble((name, "bold"), (mark, "green")))
        for rule in recipe.rules:
            node.add(Text(describe(rule)))
        for key in ("learning_rate", "weight_decay"):
            table = getattr(recipe.optimizer, key)
            node.add(Text(f"{key.replace('_', ' ')} {', '.join(f'{k} {v:g}' for k, v in table.items())}", style="dim"))
    for option in family.data_formats.processor_options:
        tree.add(Text(f"data.processor.{option.name}: {option.description}", style="dim"))
    return tree
