"""``vlm-lora swift-args``: what an existing ``swift sft`` command needs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from vlm_lora_plugin.cli.options import TracebackOption


def swift_args(
    recipe: Annotated[str, typer.Argument(metavar="RECIPE", help="A recipe in a YAML file, or a preset's name.")],
    traceback: TracebackOption = False,
) -> None:
    """Print what `swift sft` needs to train a recipe, as one line: swift sft ... $(vlm-lora swift-args RECIPE)."""
    from vlm_lora_plugin.frameworks.swift.arguments import plugin_arguments, shell_words

    _check(recipe)
    typer.echo(shell_words(plugin_arguments(recipe)))


def _check(recipe: str) -> None:
    from vlm_lora_plugin.errors import RecipeError, nearest
    from vlm_lora_plugin.manager import get_manager
    from vlm_lora_plugin.recipe import Recipe, read_recipe

    document = read_recipe(Path(recipe) if recipe.endswith((".yaml", ".yml")) else recipe)
    parsed = Recipe.parse(document, source=recipe)
    known = sorted({name for family in get_manager().families().values() for name in family.presets})
    if parsed.preset is not None and parsed.preset not in known:
        raise RecipeError(f"No installed family has a preset '{parsed.preset}'", fix=nearest(parsed.preset, known))
