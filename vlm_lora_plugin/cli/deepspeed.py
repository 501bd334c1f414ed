"""``vlm-lora deepspeed``: the DeepSpeed file for a model, a recipe and a machine."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vlm_lora_plugin.cli.options import PresetOption, RecipeOption, SetOption, TracebackOption, overrides, with_hardware

if TYPE_CHECKING:
    from vlm_lora_plugin.contract import Family
    from vlm_lora_plugin.planning.plan import HardwarePlan
    from vlm_lora_plugin.planning.resolved import ResolvedRecipe


def deepspeed(
    model: Annotated[
        Path | None, typer.Option("--model", "-m", help="A model folder, or a config.json alone; counts exactly.")
    ] = None,
    family: Annotated[
        str | None,
        typer.Option("--family", "-f", help="A family's name in place of a model; assumes its published one."),
    ] = None,
    gpus: Annotated[int | None, typer.Option("--gpus", min=1, help="Devices of one node.")] = None,
    gpu_memory: Annotated[float | None, typer.Option("--gpu-memory", help="Memory of one device in GiB.")] = None,
    host_memory: Annotated[float | None, typer.Option("--host-memory", help="Host memory of a node in GiB.")] = None,
    hardware: Annotated[str | None, typer.Option("--hardware", help="Both in short: 3x24.")] = None,
    nodes: Annotated[int | None, typer.Option("--nodes", min=1, help="Machines that train together.")] = None,
    bf16: Annotated[
        bool | None, typer.Option("--bf16/--no-bf16", help="Whether the device computes in bf16; a V100 does not.")
    ] = None,
    offload: Annotated[
        bool | None, typer.Option("--offload/--no-offload", help="Keep ZeRO-3's shards in host memory.")
    ] = None,
    recipe: RecipeOption = None,
    preset: PresetOption = None,
    assignments: SetOption = None,
    traceback: TracebackOption = False,
) -> None:
    """Print the DeepSpeed JSON on standard output, and every setting with its reason on standard error."""
    import json

    if (model is None) == (family is None):
        raise typer.BadParameter("give one of them", param_hint="--model or --family")
    machine = {
        "gpus": gpus,
        "gpu_memory": gpu_memory,
        "host_memory": host_memory,
        "nodes": nodes,
        "bf16": bf16,
        "offload": offload,
    }
    over = with_hardware(overrides(assignments, preset), hardware, machine)
    whose, resolved, plan = _of_family(family, recipe, over) if family else _of_model(model or Path(), recipe, over)
    warning = plan.check()

    from vlm_lora_plugin.planning.deepspeed import stage_settings
    from vlm_lora_plugin.reporting.console import make_console
    from vlm_lora_plugin.reporting.hardware_table import hardware_tree

    document = plan.deepspeed or stage_settings(0, resolved, whose, plan.hardware)
    console = make_console(stderr=True)
    console.print(hardware_tree(plan, warning))
    if plan.deepspeed is None:
        console.print(
            "No DeepSpeed is needed. The JSON shards nothing; it is for launchers that insist on a file.",
            highlight=False,
        )
    typer.echo(json.dumps(document, indent=2))


def _of_family(name: str, source: Path | None, over: dict[str, Any]) -> tuple[Family, ResolvedRecipe, HardwarePlan]:
    from vlm_lora_plugin.planning.plan import plan_hardware
    from vlm_lora_plugin.planning.resolve import resolve_recipe
    from vlm_lora_plugin.plugins.manager import get_manager

    family = get_manager().family(name)
    recipe = _named(resolve_recipe(source, family, over))
    return family, recipe, plan_hardware(recipe, family)


def _of_model(path: Path, source: Path | None, over: dict[str, Any]) -> tuple[Family, ResolvedRecipe, HardwarePlan]:
    from vlm_lora_plugin.job.meta_model import MetaModel
    from vlm_lora_plugin.job.train_job import recognise
    from vlm_lora_plugin.models.config_folder import config_folder, read_config
    from vlm_lora_plugin.planning.deepspeed_checks import check_base
    from vlm_lora_plugin.planning.plan import plan_hardware

    with config_folder(path) as folder:
        outline = MetaModel(folder)
        family, resolved = recognise(folder, source, over, outline.architecture)
        recipe = _named(resolved)
        known = plan_hardware(recipe, family)
        check_base(read_config(folder), known.stage, known.load, known.hardware)
        from vlm_lora_plugin.selection.resolve import trace_selection  # imports torch

        trainables = trace_selection(outline.model, family, recipe).trainables
    return family, recipe, plan_hardware(recipe, family, outline.model, trainables)


def _named(recipe: ResolvedRecipe) -> ResolvedRecipe:
    if recipe.hardware is None:
        raise typer.BadParameter("needed, unless the recipe names its hardware", param_hint="--gpus and --gpu-memory")
    return recipe
