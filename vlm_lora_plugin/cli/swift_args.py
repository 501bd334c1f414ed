"""``vlm-lora swift-args``: what an existing ``swift sft`` command needs."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from vlm_lora_plugin.cli.options import SetOption, TracebackOption, overrides


def swift_args(
    recipe: Annotated[str, typer.Argument(metavar="RECIPE", help="A recipe in a YAML file, or a preset's name.")],
    assignments: SetOption = None,
    traceback: TracebackOption = False,
) -> None:
    """Print what `swift sft` needs to train a recipe, as one line: swift sft ... $(vlm-lora swift-args RECIPE)."""
    from vlm_lora_plugin.frameworks.swift.arguments import plugin_arguments, shell_words

    over = overrides(assignments, None)
    document = _checked(recipe, over)
    typer.echo(shell_words(plugin_arguments(document if over else recipe)))


def _checked(recipe: str, over: Mapping[str, Any]) -> dict[str, Any]:
    """Return the recipe with what is laid over it, as one document whose preset some installed family has."""
    from vlm_lora_plugin.errors import RecipeError, nearest
    from vlm_lora_plugin.plugins.manager import get_manager
    from vlm_lora_plugin.recipe import lay_over

    document = lay_over(Path(recipe) if recipe.endswith((".yaml", ".yml")) else recipe, over)
    preset = document.get("preset")
    known = sorted({name for family in get_manager().families().values() for name in family.presets})
    if preset is not None and preset not in known:
        raise RecipeError(f"No installed family has a preset '{preset}'", fix=nearest(preset, known))
    return document
