"""``vlm-lora plan``: the memory of a job before it runs, and whether it fits."""

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
    with_hardware,
)
from vlm_lora_plugin.cli.picture_option import refuse_unwritable

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from vlm_lora_plugin.contract import Family
    from vlm_lora_plugin.job.memory_changes import Advice
    from vlm_lora_plugin.job.memory_plan import MemoryPlan
    from vlm_lora_plugin.planning.resolved import ResolvedRecipe

DOES_NOT_FIT = 1
"""Exit code when the job does not fit the device that is named."""


def plan(
    model: Annotated[Path, typer.Argument(help="A model folder, or a config.json alone; its weights are not read.")],
    recipe: RecipeOption = None,
    preset: PresetOption = None,
    assignments: SetOption = None,
    hardware: Annotated[
        str | None, typer.Option("--hardware", help="Devices x GiB of one: 1x24. In place of the recipe's.")
    ] = None,
    data: Annotated[
        Path | None, typer.Option("--data", "-d", help="The data, of which the rows that cost most are traced.")
    ] = None,
    tokens: Annotated[
        int | None, typer.Option("--tokens", min=2, help="Without data: tokens of a row, data.max_length by default.")
    ] = None,
    images: Annotated[
        int | None, typer.Option("--images", min=0, help="Without data: images of a row, 1 by default.")
    ] = None,
    image_size: Annotated[
        str | None,
        typer.Option("--image-size", help="Without data: WIDTHxHEIGHT of an image in pixels, else the largest."),
    ] = None,
    answers: Annotated[
        int | None, typer.Option("--answers", min=1, help="Without data: tokens with a label, else all of the text.")
    ] = None,
    advice: Annotated[
        bool, typer.Option("--advice/--no-advice", help="Trace what to change where it does not fit, or has room.")
    ] = True,
    dtype: DtypeOption = None,
    variant: VariantOption = None,
    picture: Annotated[Path | None, typer.Option("--output", "-o", help="Write the timeline here, as PNG.")] = None,
    as_json: JsonOption = False,
    traceback: TracebackOption = False,
) -> None:
    """Trace one training step without values, and tell what memory it takes and whether that fits.

    Exit codes: 0 it fits, or no device is named; 1 it does not fit; 2 it cannot be told.
    """
    import json

    from vlm_lora_plugin.documents import merge, nested
    from vlm_lora_plugin.job.meta_model import MetaModel
    from vlm_lora_plugin.job.train_job import recognise
    from vlm_lora_plugin.models.config_folder import config_folder

    stated = {"--tokens": tokens, "--images": images, "--image-size": image_size, "--answers": answers}
    idle = [name for name, value in stated.items() if value is not None]
    if data is not None and idle:
        raise typer.BadParameter("it has no effect beside --data, whose own rows are traced", param_hint=idle[0])
    over = with_hardware(overrides(assignments, preset), hardware, {})
    size = None if image_size is None else _size(image_size)
    if picture is not None:
        refuse_unwritable(picture)
    with config_folder(model) as folder:
        outline = MetaModel(folder, name_of(dtype), variant)
        recognise(folder, recipe, over, outline.architecture)
        # These import torch: after what can be refused without it.
        from vlm_lora_plugin.job.memory_changes import uses_of_room, ways_to_fit
        from vlm_lora_plugin.job.memory_plan import MemoryPlanner, RowShape

        def resolved(changes: Mapping[str, Any]) -> tuple[Family, ResolvedRecipe]:
            return recognise(folder, recipe, merge(over, nested(changes)), outline.architecture)

        shape = RowShape(tokens, answers, 1 if images is None else images, size)
        planner = MemoryPlanner(outline.model, str(model), folder, resolved, shape, data)
        found = planner.plan()
        advised: list[Advice] = []
        if advice and found.fits is not None:
            advised = (uses_of_room if found.fits else ways_to_fit)(planner, found)
    if picture is not None:
        from vlm_lora_plugin.reporting.memory_picture import draw_memory

        draw_memory(found, picture)
    if as_json:
        typer.echo(json.dumps({**found.document(), "changes": [each.document() for each in advised]}, indent=2))
    else:
        _show(found, advised)
    if found.fits is False:
        raise typer.Exit(DOES_NOT_FIT)


def _size(text: str) -> tuple[int, int]:
    width, _, height = text.lower().partition("x")
    if not (width.isdecimal() and height.isdecimal() and len(text) < 20 and int(width) and int(height)):
        raise typer.BadParameter("write WIDTHxHEIGHT in pixels, 1024x768", param_hint="--image-size")
    return int(width), int(height)


def _show(found: MemoryPlan, advised: Sequence[Advice]) -> None:
    from vlm_lora_plugin.reporting.console import make_console
    from vlm_lora_plugin.reporting.memory_table import advice_lines, memory_table, verdict, where

    console = make_console()
    console.print(memory_table(found))
    console.print(where(found), highlight=False)
    for traced in found.batches:
        mark = "costliest" if traced is found.worst else "also traced"
        console.print(f"{mark}: {traced.name}, {traced.device.total / 2**30:.2f} GiB", highlight=False, soft_wrap=True)
    for line in found.worst.device.assumptions:
        console.print(f"assumed: {line}", style="dim", highlight=False, soft_wrap=True)
    for line in advice_lines(found, advised):
        console.print(line, highlight=False, soft_wrap=True)
    console.print(verdict(found), style="bold green" if found.fits else "bold", highlight=False)
