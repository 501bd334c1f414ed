"""``vlm-lora inspect``: what a recipe would train in a model, without loading its weights."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from vlm_lora_plugin.cli.options import (
    DtypeOption,
    PresetOption,
    RecipeOption,
    SetOption,
    TracebackOption,
    name_of,
    overrides,
)


def inspect(
    model: Annotated[Path, typer.Argument(help="A model folder.")],
    recipe: RecipeOption = None,
    preset: PresetOption = None,
    assignments: SetOption = None,
    dtype: DtypeOption = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a tree.")] = False,
    traceback: TracebackOption = False,
) -> None:
    """Show what a recipe would train: parameters, means, learning rates, predicted memory. Loads no weights."""
    import json

    from vlm_lora_plugin.job.settings import recognise
    from vlm_lora_plugin.reporting.console import make_console
    from vlm_lora_plugin.reporting.tree import component_tree

    family, resolved = recognise(model, recipe, overrides(assignments, preset))
    from vlm_lora_plugin.job.look import look_at  # imports torch: after what can be refused without it

    summary, _ = look_at(model, family, resolved, name_of(dtype))
    if as_json:
        typer.echo(json.dumps(summary.document(), indent=2))
        return
    make_console().print(component_tree(summary))
